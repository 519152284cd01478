"""What `beit plan` prints."""

from collections.abc import Iterator, Mapping
from typing import Any

from beit.files import human_bytes, human_time
from beit.report.tables import Table, text_table

_STAGES = {
    "tokenizer": "tokenizer",
    "pretrain": "pre-training",
    "pretrain_live": "pre-training, live tokens",
    "bank": "bank of tokens",
    "pretrain_banked": "pre-training, banked tokens",
    "classify": "fine-tuning",
    "segment": "fine-tuning",
}


def plan_text(plan: Mapping[str, Any]) -> str:
    """The whole plan, for a terminal."""
    parts = [
        "\n".join(_head(plan)),
        text_table(_stages(plan)),
        text_table(_memory(plan["memory"])),
        _fit(plan["memory"]),
        "\n".join(_disk(plan["disk"])),
        "\n".join(f"- {note}" for note in plan["notes"]),
    ]
    return "\n\n".join(part for part in parts if part)


def _head(plan: Mapping[str, Any]) -> Iterator[str]:
    machine, work = plan["machine"], plan["gflop_per_picture"]
    held_out = plan["validation_images"]
    more = f" and {held_out:,} held out" if held_out else ""
    rate = f"{_flops(machine['flops'])} {machine['precision']} ({_how(machine)})"
    yield f"{plan['recipe']}: {plan['images']:,} pictures{more}"
    yield f"on {_times(plan['devices'])}{machine['name']}, {rate}"
    yield ""
    tokenizer = plan["tokenizer_parameters"]
    beside = f", tokenizer {tokenizer:,}" if tokenizer else ""
    yield f"  parameters       {plan['parameters']:,}{beside}"
    text = f"{work['forward']:.2f} forward, {work['forward_and_backward']:.2f} with backward"
    if tokenizer:
        text += (
            f"; tokenizer {work['tokenizer']:.2f} for codes, "
            f"{work['tokenizer_training']:.2f} in its training"
        )
    yield f"  GFLOP a picture  {text}"
    if machine["assumed_share"] is None:
        share = f"{machine['share_of_rate']:.0%} of the matrix product's rate"
        if tokenizer:
            share += f", {machine['share_of_rate_with_tokenizer']:.0%} with live tokens"
        yield f"  a step reaches   {share}"


def _times(devices: int) -> str:
    return f"{devices} x " if devices > 1 else ""


def _how(machine: Mapping[str, Any]) -> str:
    share = machine["assumed_share"]
    return f"{machine['source']}" + ("" if share is None else f"; {share:.0%} of it assumed")


def _flops(rate: float) -> str:
    return f"{rate / 1e12:,.0f} TFLOP/s" if rate >= 1e13 else f"{rate / 1e9:,.0f} GFLOP/s"


def _stages(plan: Mapping[str, Any]) -> Table:
    looked_up = plan["input"] is not None
    header = ["stage", "steps", "pictures/s", "time"]
    more = ["evaluations in it", "slower part"] if looked_up else []
    rows = []
    for name, stage in plan["stages"].items():
        steps = f"{stage['steps']:,}" if "steps" in stage else f"{stage['views']:,} views"
        row = [_STAGES[name], steps, _rate(stage["pictures_per_second"])]
        row.append(human_time(stage["seconds"]))
        looking = stage.get("evaluation_seconds")
        told = [human_time(looking) if looking else "", stage["bottleneck"] or ""]
        rows.append([*row, *told[: len(more)]])
    return Table([*header, *more], rows)


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _memory(memory: Mapping[str, Any]) -> Table:
    rows = [
        ("weights, gradients, AdamW (16 bytes a parameter)", memory["state"]),
        ("averaged weights", memory["average"]),
        ("weights in bfloat16", memory["half_weights"]),
        ("tokenizer", memory["tokenizer"]),
        (
            f"activations, {memory['micro_batch']:,} pictures of "
            f"{human_bytes(memory['activations_per_picture'])}",
            memory["activations"],
        ),
        ("together", memory["total"]),
    ]
    return Table(
        ["memory of a device", "size"], [(name, human_bytes(size)) for name, size in rows if size]
    )


def _fit(memory: Mapping[str, Any]) -> str:
    """Whether it fits, and what does."""
    if memory["available"] is None:
        return ""
    room, largest = human_bytes(memory["available"]), memory["largest_micro_batch"]
    if memory["fits"]:
        return f"It fits into {room}; so would {largest:,} pictures a micro-batch."
    if memory["accumulate"] is None:
        return f"It does not fit into {room}, however the batch is cut."
    return (
        f"It does not fit into {room}: at most {largest:,} pictures a micro-batch do; "
        f"--optim.accumulate {memory['accumulate']} keeps the batch."
    )


def _disk(disk: Mapping[str, Any]) -> Iterator[str]:
    size, kept = human_bytes(disk["checkpoint"]), disk["checkpoints_kept"]
    yield (
        f"Disk: {human_bytes(disk['checkpoints'])} for checkpoints ({kept} kept and one being "
        f"written, {size} each)"
    )
    if "bank" in disk:
        views = "view" if disk["bank_views"] == 1 else "views"
        yield (
            f"      {human_bytes(disk['bank'])} for a bank of {disk['bank_views']:,} {views} of "
            "each picture (--bank-views K for fewer)"
        )
    if "packed" in disk:
        yield (
            f"      {human_bytes(disk['packed'])} for the packed pictures, both splits (by "
            f"{disk['packed_sample']} of them)"
        )
