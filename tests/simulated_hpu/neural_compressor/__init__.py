"""Stands in for Intel's neural_compressor: names and signatures as in release 3.10."""
