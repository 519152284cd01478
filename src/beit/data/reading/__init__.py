"""Reading by several processes: which picture each is at, and what cannot be read."""
