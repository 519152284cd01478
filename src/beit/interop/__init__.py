"""Other people's files: their names in tables, their weights read safely, ours written for them."""
