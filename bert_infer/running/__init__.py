"""A run: what is settled before it, what it does, and what is known of it."""
