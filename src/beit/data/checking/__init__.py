"""What is worth knowing, or refusing, before a run is spent on pictures."""
