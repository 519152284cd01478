"""The machine that a process finds itself on."""

import os


def allowed_cores() -> int:
    """The cores that this process may use: a scheduler or a container may have kept others back."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
