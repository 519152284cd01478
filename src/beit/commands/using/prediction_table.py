"""What was predicted at masked places, beside guesses that need no learning, as a table."""

from collections.abc import Mapping
from typing import Any

from beit.report.tables import Table

_PIXELS = {
    "model": "loss",
    "mean colour of ImageNet": "zero_loss",
    "one patch for all places": "constant_loss",
    "mean colour of the visible patches": "mean_colour_loss",
    "copy the nearest visible patch": "neighbour_copy_loss",
}
_TOKENS = {
    "model": ("accuracy", "loss"),
    "most frequent code": ("most_frequent_accuracy", "constant_loss"),
    "copy the nearest visible patch": ("neighbour_copy_accuracy", ""),
}


def prediction_table(found: Mapping[str, Any], caption: str) -> Table | None:
    """The figures of a model that predicts tokens or pixels; None where there are none.

    Args:
        found: A validation row, or what an evaluation found.
        caption: Of the table.
    """
    if found.get("zero_loss") is not None:
        errors = [[name, _number(found.get(key), ".4f")] for name, key in _PIXELS.items()]
        return Table(["prediction of masked pixels", "mean squared error"], errors, caption)
    if found.get("accuracy") is None:
        return None
    cells = [
        [name, _number(found.get(right), ".1%"), _number(found.get(nats), ".3f")]
        for name, (right, nats) in _TOKENS.items()
    ]
    return Table(["prediction of masked places", "accuracy", "loss, nats"], cells, caption)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"
