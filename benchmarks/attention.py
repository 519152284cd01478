"""Attention with a learned bias: what a model takes here, beside torch's and the products.

    python benchmarks/attention.py --tokens 197 577 --heads 12
    python benchmarks/attention.py --blocks          # other shapes of our kernels, on a GPU

Each row is one number of tokens, with as many pictures as make a batch of the same number of them.
Outputs and gradients are found equal, up to the precision, before anything is timed.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from beit.commands.assembly.build import choose_device, choose_precision
from beit.commands.planning.calibration import Call
from beit.nn import attention
from harness import RESULTS, interleaved, record, times_faster

Way = Callable[[Tensor, Tensor], Tensor]
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
_CALLS = {"cpu": 1, "cuda": 20}  # in a timed piece: a kernel is shorter than its launch


def main() -> None:
    """Time every number of tokens and write the record after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[197, 577])
    parser.add_argument("--in-all", type=int, help="tokens of a batch (a GPU 50,432, a CPU 1,576)")
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--features", type=int, default=64, help="of a head")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--blocks", action="store_true", help="try other shapes of our kernels")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = choose_device(None)
    options.in_all = options.in_all or (50_432 if device.type == "cuda" else 1_576)
    precision = choose_precision("auto", device)
    dtype = getattr(torch, precision)
    name = f"attention-{'blocks-' * options.blocks}{device.type}"
    done: list[dict[str, Any]] = []
    for tokens in options.tokens:
        given = _drawn(options, tokens, device, dtype)
        for row in _with_blocks(options, given) if options.blocks else _compared(options, given):
            print(record(name, [*done, row], options.results, precision=precision), flush=True)
        done.append(row)


def _drawn(
    options: argparse.Namespace, tokens: int, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Queries, keys and values; the bias; what comes back."""
    torch.manual_seed(0)
    pictures, heads, features = max(1, options.in_all // tokens), options.heads, options.features
    projected = torch.randn(pictures, tokens, 3, heads, features).to(dtype)
    bias = torch.randn(heads, tokens, tokens)
    received = torch.randn(pictures, tokens, heads, features).to(dtype)
    return [tensor.to(device) for tensor in (projected, bias, received)]


def _ways() -> dict[str, Way]:
    def torchs(projected: Tensor, bias: Tensor) -> Tensor:
        query, key, value = attention.split_projected(projected)
        mask = attention._aligned(bias.to(query.dtype))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return mixed.transpose(1, 2)

    def written_out(projected: Tensor, bias: Tensor) -> Tensor:
        query, key, value = attention.split_projected(projected)
        return (attention.attention_probabilities(query, key, bias) @ value).transpose(1, 2)

    return {"ours": attention.attend_projected, "torch's": torchs, "written out": written_out}


def _there_and_back(way: Way, given: list[Tensor]) -> list[Tensor]:
    projected, bias = (tensor.detach().requires_grad_() for tensor in given[:2])
    mixed = way(projected, bias)
    return [mixed.detach(), *torch.autograd.grad(mixed, (projected, bias), given[2])]


def _there(way: Way, given: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return way(given[0], given[1])


def _assert_equal(ways: dict[str, Way], given: list[Tensor]) -> dict[str, float]:
    """The relative distance of each way's outputs and gradients from those of float32."""
    exact = _there_and_back(ways["written out"], [tensor.float() for tensor in given])
    apart = {}
    for name, way in ways.items():
        pairs = zip(_there_and_back(way, given), exact, strict=True)
        apart[name] = max(float((one - two).norm() / two.norm()) for one, two in pairs)
        assert apart[name] < _TOLERANCE[given[0].dtype], (name, apart[name])
    return apart


def _repeated(call: Callable[[], Any], device: torch.device) -> Call:
    def several() -> None:
        for _ in range(_CALLS[device.type]):
            call()

    return several


def _timed(options: argparse.Namespace, calls: dict[str, Call], device: torch.device) -> Any:
    return interleaved(calls, rounds=options.rounds, warm_ups=2, device=device)


def _compared(options: argparse.Namespace, given: list[Tensor]) -> Iterator[dict[str, Any]]:
    """The row of a number of tokens: as far as it is known, several times."""
    ways, device = _ways(), given[0].device
    row = _shape(options, given) | {"apart from float32": _assert_equal(ways, given)}
    for what, pass_of in (("forward", _there), ("forward and backward", _there_and_back)):
        calls = {
            name: _repeated(partial(pass_of, way, given), device) for name, way in ways.items()
        }
        seconds = _timed(options, calls, device)
        row[what] = {
            "milliseconds": _milliseconds(seconds, device),
            "ratios": {
                f"{name} / ours": times_faster(seconds[name], seconds["ours"])
                for name in ways
                if name != "ours"
            },
        }
        yield row


def _with_blocks(options: argparse.Namespace, given: list[Tensor]) -> Iterator[dict[str, Any]]:
    """Every kernel with other blocks than its own, which stand in the record's first place.

    The row is given after each kernel: all of them take long, and a card is lent for a time.
    """
    from beit.nn import fused_kernels as kernels
    from beit.nn.fused_attention import fused_attention, why_not_for

    device = given[0].device
    if why := why_not_for(given[0]):
        raise SystemExit(f"our kernels are not taken here: {why}")
    row = _shape(options, given)
    sides = (64, 32), (64, 64), (128, 32), (128, 64), (32, 64), (32, 32)
    wanted = [kernels.Blocks(*s, *w) for s in sides for w in itertools.product((4, 8), (1, 2, 3))]
    for name in ("FORWARD", "OF_KEYS_AND_VALUES", "OF_QUERIES"):
        own = getattr(kernels, name)
        go = _there if name == "FORWARD" else _there_and_back
        for blocks in [own, *(blocks for blocks in wanted if blocks != own)]:
            setattr(kernels, name, blocks)
            label = " ".join(f"{part}" for part in blocks)
            try:
                _assert_equal({**_ways(), "ours": fused_attention}, given)
                call = _repeated(partial(go, fused_attention, given), device)
                seconds = _timed(options, {label: call}, device)
                row.setdefault(name, {})[label] = _milliseconds(seconds, device)[label]
            except Exception as error:  # too large for the card, or wrong
                row.setdefault(name, {})[label] = f"{type(error).__name__}"
        setattr(kernels, name, own)
        yield row


def _shape(options: argparse.Namespace, given: list[Tensor]) -> dict[str, Any]:
    pictures, tokens, _, heads, features = given[0].shape
    return {"batch": pictures, "tokens": tokens, "heads": heads, "features": features}


def _milliseconds(seconds: dict[str, list[float]], device: torch.device) -> dict[str, float]:
    """The shortest of each side, of one call."""
    calls = _CALLS[device.type]
    return {name: round(1000 * min(times) / calls, 4) for name, times in seconds.items()}


if __name__ == "__main__":
    main()
