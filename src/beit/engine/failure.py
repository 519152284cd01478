"""What is told and kept when a run cannot go on: not a number, or no memory."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from beit.engine.checkpoints import MANIFEST, Snapshot, clear_snapshot, write_snapshot
from beit.engine.logging import encode_row
from beit.engine.protocol import AT_WILL, Cutting
from beit.engine.settings import FitSettings
from beit.errors import UserError
from beit.files import atomic_write_text, human_bytes

_ADVICE = "try a lower learning rate, a longer warm-up or stronger clipping"


class Diverged(RuntimeError):
    """The loss or its gradient is not a number; the message is one sentence."""


Identity = dict[str, list[int]]


def batch_identity(batch: Any) -> Identity:
    """Which samples a batch holds, from its `index` and `epoch` where it has them (on the host)."""
    found = {}
    for name in ("index", "epoch"):
        value = getattr(batch, name, None)
        if isinstance(value, Tensor) and value.device.type == "cpu":
            found[name] = value.tolist()
    return found


def dump_batch(folder: Path, rank: int, identities: Sequence[Identity]) -> None:
    """Write which samples this rank trained on in the step that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"rank": rank, "micro_batches": list(identities)}, indent=1)
    atomic_write_text(folder / f"batch-rank-{rank}.json", text)


def dump_state(folder: Path, row: dict[str, Any], snapshot: Snapshot, when: str) -> None:
    """Write the numbers of the step that failed and the state before or after its update."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {
        key: value if not isinstance(value, float) else repr(value) for key, value in row.items()
    }
    atomic_write_text(folder / "step.json", encode_row(numbers) + "\n")
    state = folder / f"state-{when}-the-step"
    if not (state / MANIFEST).is_file():  # written last; a kill may have left a part
        clear_snapshot(state)
        write_snapshot(state, snapshot)


def diverged_message(row: Mapping[str, Any], dump: Path | str, saved: str) -> str:
    """One sentence: which step, what, where the dump is or why there is none, what to try."""
    culprit = f"loss {row['loss']}, gradient norm {row['gradient_norm']}"
    where = _where(dump, "before")
    return (
        f"step {row['step']} gave numbers that are not finite ({culprit}) and was not applied; "
        f"{where}, {saved}: {_ADVICE}"
    )


def diverged_after_message(row: Mapping[str, Any], dump: Path | str, saved: str) -> str:
    """The same of a last step whose own numbers were finite."""
    where = _where(dump, "after")
    return (
        f"step {row['step']}, the last, left weights whose loss is not finite "
        f"({row['loss_after']}); {where}, {saved}: {_ADVICE}"
    )


def _where(dump: Path | str, when: str) -> str:
    if isinstance(dump, Path):
        return f"its batch and the state {when} it are in {dump}"
    return f"nothing was dumped ({dump})" if dump else "nothing was dumped"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is gone: torch's, its CPU allocator's, a CUDA library's."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    signs = ("t allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return any(sign in str(error) for sign in signs)


def explained(
    error: Exception,
    settings: FitSettings,
    step: int,
    world_size: int,
    device: torch.device,
    cutting: Cutting = AT_WILL,
) -> UserError | None:
    """The user's view of an error inside a step, where there is one: memory or the compiler."""
    text = str(error)
    if is_out_of_memory(error):
        return _out_of_memory(settings, step, world_size, device, cutting)
    if settings.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        reason = text.strip().partition("\n")[0]
        return UserError(
            f"torch.compile does not work here ({reason}): set engine.compile to false in the "
            "recipe (--engine.compile false; --tokenizer.engine.compile false where it is the "
            "tokenizer of a pre-training that is trained)"
        )
    return None


def _out_of_memory(
    settings: FitSettings, step: int, world_size: int, device: torch.device, cutting: Cutting
) -> UserError:
    """The error that names batch, memory and the next value to try."""
    micro = settings.micro_batch(world_size)
    memory = "memory"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        memory = f"memory ({human_bytes(total - free)} of {human_bytes(total)} in use)"
    following = _next_accumulation(settings, world_size, cutting.multiple)
    if following is None:
        advice = "choose a smaller model or picture size"
    else:
        smaller = settings.global_batch // (world_size * following)
        advice = (
            f"set accumulate to {following} ({smaller} at a time) in a run of another --out; "
            + (cutting.changes or "the result stays the same")
            + ("" if settings.precision == "bfloat16" else ", or set precision to bfloat16")
        )
    return UserError(
        f"{device} ran out of {memory} at step {step} with {micro} pictures at a time: {advice}"
    )


def _next_accumulation(settings: FitSettings, world_size: int, multiple: int) -> int | None:
    """The fewest parts that need half the memory or less, or as little as can be."""
    share = settings.global_batch // world_size
    parts = range(settings.accumulate + 1, share + 1)
    possible = [part for part in parts if share % part == 0 and share // part % multiple == 0]
    halves = [part for part in possible if part >= 2 * settings.accumulate]
    return next(iter(halves or possible[-1:]), None)
