"""What is measured of a run, what else was going on, and what the figures support saying."""
