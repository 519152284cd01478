"""The machines that `beit plan` can count with: this one, named ones, and ones that are told."""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from beit.commands.assembly.build import Precision
from beit.errors import UserError

HERE = "here"
SHARE = 0.5  # of a named machine's rate that a step is assumed to reach


@dataclass(frozen=True)
class Machine:
    """One device: how fast it multiplies matrices, and what it holds.

    Attributes:
        name: What it is called on the command line.
        rates: FLOP/s of a large matrix product, by precision.
        source: Where the figures are from, in a phrase.
        memory: Bytes; None where it is not known.
        share: Of the rate, that a training step is assumed to reach; None where steps are timed.
        device: What torch calls its kind.
    """

    name: str
    rates: Mapping[Precision, float]
    source: str
    memory: float | None = None
    share: float | None = SHARE
    device: str = "cuda"

    def rate(self, precision: Precision) -> float:
        """FLOP/s of matrix products.

        Raises:
            UserError: Nobody has measured that.
        """
        if precision not in self.rates:
            known = " and ".join(self.rates)
            raise UserError(
                f"the {precision} rate of {self.name} is not known ({known} is); set "
                f"--engine.precision {next(iter(self.rates))}, or tell the rate by --rate"
            )
        return self.rates[precision]

    @property
    def best(self) -> Precision:
        """The precision that is the fastest here."""
        return max(self.rates, key=lambda precision: self.rates[precision])


MACHINES: dict[str, Machine] = {
    "h200": Machine(
        "h200",
        {"bfloat16": 790e12},
        "measured matrix product; published memory",
        memory=141e9,
    ),
    "two-cores": Machine(
        "two-cores",
        {"bfloat16": 330e9, "float32": 170e9},
        "measured matrix product on two cores of a server with AVX512-bf16",
        device="cpu",
    ),
}


def named_machine(
    name: str,
    *,
    rate: float | None = None,
    share: float | None = None,
    memory: float | None = None,
) -> Machine:
    """A machine of the table, or one that is told.

    Args:
        name: A key of MACHINES; any other name when a rate is told.
        rate: FLOP/s of its matrix product, in any precision.
        share: Of the rate, that a step is assumed to reach.
        memory: Bytes.

    Raises:
        UserError: There is no such machine, or a number is impossible.
    """
    for flag, value in (("--rate", rate), ("--memory", memory)):
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{flag} must be a number above 0")
    if share is not None and not 0 < share <= 1:
        raise UserError(f"--share {share:g}: a share of the peak lies above 0 and at most at 1")
    if rate is not None:
        both: dict[Precision, float] = {"bfloat16": rate, "float32": rate}
        found = Machine(name if name != HERE else "told", both, "rate as told")
    elif name in MACHINES:
        found = MACHINES[name]
    else:
        near = difflib.get_close_matches(name, [*MACHINES, HERE], n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"there are {HERE}, {', '.join(MACHINES)}"
        raise UserError(f"there is no machine {name!r}; {hint} (or tell its --rate)")
    given = found.memory if memory is None else memory
    return replace(found, share=share or found.share, memory=given)


def this_machine(device: torch.device, rates: Mapping[Precision, float]) -> Machine:
    """The machine at hand, with the rates that were measured on it."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = str(properties.name), float(properties.total_memory)
    else:
        threads = torch.get_num_threads()
        name = f"this CPU ({threads} {'thread' if threads == 1 else 'threads'})"
        memory = float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    return Machine(name, rates, "measured", memory, None)
