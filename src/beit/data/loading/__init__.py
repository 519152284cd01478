"""Which pictures a step takes, and batches of them."""
