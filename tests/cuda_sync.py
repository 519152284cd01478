"""Whether the host waits for a CUDA device."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def never_asked() -> Iterator[None]:
    """Whoever makes the host wait for the device in here gets an error."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        _set("error")
        yield
    finally:
        _set(before)


def _set(mode: str | int) -> None:
    """Without the warning that the mode is a prototype: it would be an error, after it was set."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode(mode)
