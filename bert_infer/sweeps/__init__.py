"""Several runs: which, in which order, gone on with later, made once more."""
