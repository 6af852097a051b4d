"""What an encoder is computed with: attention, and matrix multiplication in several formats."""
