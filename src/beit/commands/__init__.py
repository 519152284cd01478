"""The work of the commands: the one place where objects are put together.

The parts know those before them alone: assembly, preparing, training, using, sharing, planning,
looking.
"""
