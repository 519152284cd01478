"""What a run will take: counted, timed, told."""
