"""Stands in for Gaudi's plugin: names, signatures and defaults as in release 1.19 to 1.24."""
