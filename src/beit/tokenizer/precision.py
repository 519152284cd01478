"""What "float32" means: also on devices that would rather multiply in fewer bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions and matrix products of float32 on CUDA without TF32 (10 bits of mantissa).

    cuDNN's convolutions take TF32 unless they are told not to. The settings are global, so they are
    the caller's again afterwards. Only those that ask for TF32 are touched, and only through the
    newer of torch's interfaces: the older one warns, and does not answer where both were used. A
    place that had TF32 from `torch.backends.fp32_precision` has it of its own afterwards.
    """
    backends: Any = torch.backends
    places = (backends.cudnn.conv, backends.cuda.matmul)
    reduced = [place for place in places if place.fp32_precision == "tf32"]
    for place in reduced:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        for place in reduced:
            place.fp32_precision = "tf32"


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Float32 on the device, inside somebody else's autocast and TF32 too."""
    if device.type == "meta":
        yield
    elif device.type == "cuda":
        with torch.autocast("cuda", enabled=False), full_float32():
            yield
    else:
        with torch.autocast(device.type, enabled=False):
            yield
