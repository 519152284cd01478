"""How a picture is seen: every chance of a sample, its crops, and the work left to the device."""
