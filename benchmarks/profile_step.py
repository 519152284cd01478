"""Where the time of a step goes: operations of our own step, counted by torch's profiler.

    python benchmarks/profile_step.py --sizes base --batch 8

Writes a record, and a picture of it beside docs/performance.md. A profiled step is a little slower
than others; shares are what counts here. The step is that of `step.py`, live tokenizer included.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from matplotlib.axes import Axes
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from beit.commands.planning.calibration import synchronise
from beit.nn.encoder import Encoder
from beit.nn.heads import MaskedTokenHead
from beit.nn.masked_image_model import MaskedImageModel
from beit.report.canvas import BLUE, SMALL_SIZE, new_figure, quiet_axes, to_png
from harness import RESULTS, record
from performance_tables import PAGE
from setting import Setting, drawn_batch, settings_of, with_settings
from step import fast_tokens, own_step

# What a CPU's operation or a GPU's kernel belongs to, by a part of its name in small letters (a
# regular expression); the first that fits. The rest is "other".
KINDS = {
    "fused by torch's compiler": ("^triton_",),  # named after all that was fused
    "convolutions of the tokenizer": ("conv", "implicit", "fprop", "dgrad", "wgrad"),
    "attention": (
        "^_forward$",  # ours: these three
        "^_of_keys_and_values$",
        "^_of_queries$",
        *("fmha", "flash", "bmm", "baddbmm", "attention", "softmax"),
    ),
    "linear layers' products": ("addmm", "aten::mm", "linear", "nvjet", "cutlass", "gemm"),
    "copies and casts": ("copy", "contiguous", "cat", "memcpy", "nchwtonhwc", "nhwctonchw"),
    "GELU": ("gelu",),
    "LayerNorm": ("layer_?norm", "gammabeta"),
    "AdamW and clipping": ("adam", "foreach", "multi_tensor_apply", "norm"),
    "sums, biases and residuals": ("sum", "add", "mul", "fill", "zero", "memset"),
}


def main() -> None:
    """Profile every size and write a record and a picture of each."""
    options = with_settings(__doc__).parse_args()
    folder = PAGE.parent if options.results == RESULTS else options.results
    for setting in settings_of(options):
        row, name = profiled(setting), f"profile-{setting.where}"
        print(record(name, [row], options.results, precision=setting.precision))
        (folder / f"step-{name}.png").write_bytes(drawn(row))


def profiled(setting: Setting) -> dict[str, Any]:
    """Milliseconds of each kind of operation in one step, the mean of some."""
    torch.manual_seed(0)
    config = setting.encoder()
    vae = setting.tokenizer(config.grid)
    head = MaskedTokenHead(config.width, vae.vocabulary)
    model = MaskedImageModel(Encoder(config), head).to(setting.device)
    batch = drawn_batch(setting, config, vae.image_size)
    step = own_step(model, fast_tokens(vae, setting), batch, setting)
    for _ in range(2):
        step()
    kinds = [ProfilerActivity.CPU]
    if setting.device.type == "cuda":
        kinds.append(ProfilerActivity.CUDA)
    with profile(activities=kinds) as found:
        for _ in range(setting.rounds):
            step()
        synchronise(setting.device)
    times = by_kind(found.key_averages(), setting.device)
    whole = sum(times.values())
    shares = {name: round(time / whole, 4) for name, time in times.most_common()}
    return {
        "size": setting.size,
        "batch": setting.batch,
        "rounds": setting.rounds,
        "attention": setting.attention,
        "milliseconds": round(whole / setting.rounds / 1000, 2),
        "shares": shares,
    }


def by_kind(events: Iterable[Any], device: torch.device) -> Counter[str]:
    """Microseconds that operations took themselves, by kind.

    On CUDA those of kernels and copies alone: a CPU's operation has the time of the kernels that it
    launched once more, and an annotation that of all it surrounds.
    """
    times: Counter[str] = Counter()
    for event in events:
        if device.type == "cpu":
            times[kind_of(event.key)] += event.self_cpu_time_total
        elif event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            times[kind_of(event.key)] += event.self_device_time_total
    return times


def kind_of(operation: str) -> str:
    """What an operation belongs to."""
    for kind, parts in KINDS.items():
        if any(re.search(part, operation.lower()) for part in parts):
            return kind
    return "other"


def drawn(row: dict[str, Any]) -> bytes:
    """Bars of the shares, the largest on top."""
    figure = new_figure(7.5, 3.2)
    axes: Axes = figure.subplots()
    title = f"A step of {row['size']}, batch {row['batch']}, live tokenizer"
    quiet_axes(axes, title, "share of the time, %")
    axes.grid(False)
    names = list(row["shares"])[::-1]
    shares = [100 * row["shares"][name] for name in names]
    axes.barh(names, shares, color=BLUE, height=0.7)
    for place, share in enumerate(shares):
        axes.annotate(
            f"{share:.1f}",
            (share, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL_SIZE,
        )
    axes.margins(x=0.08)
    return to_png(figure)


if __name__ == "__main__":
    main()
