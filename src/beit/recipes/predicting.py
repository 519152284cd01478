"""`beit predict`: what a trained model says of pictures."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from beit.data.augment import normalise
from beit.data.decode import BadPicture
from beit.data.draws import Key
from beit.data.files import FileList, named_files
from beit.data.views import ViewSettings, make_views
from beit.errors import UserError
from beit.nn.classifier import Classifier
from beit.recipes.build import choose_device
from beit.recipes.finished import read_finished

BATCH = 64
_NO_CHANCE = Key(0, 0, 0)


def predict(
    spec: str | Path,
    pictures: Sequence[str],
    *,
    top: int = 1,
    lines: bool = False,
    device: str | None = None,
) -> dict[str, Any]:
    """Classify pictures and print what was found, one line each.

    Args:
        spec: A classifier; see `read_finished`.
        pictures: Files, folders and patterns.
        top: Classes a picture, the likeliest first.
        lines: Print JSON lines instead of a table.
        device: Where to compute.

    Returns:
        How many were classified, and the unreadable ones with the reason.

    Raises:
        UserError: The model, a name or every picture is unusable.
    """
    files = named_files(pictures)
    finished = read_finished(spec)
    place = choose_device(device)
    model = finished.model.to(place)
    if not 1 <= top <= model.classes:
        raise UserError(f"--top {top}: the model knows {model.classes} classes; ask for 1 to that")
    bad: list[dict[str, str]] = []
    done = 0
    width = max((len(files.identity(i)) for i in range(len(files))), default=0)
    for names, probabilities in _probabilities(model, files, finished.views, place, bad):
        done += len(names)
        for name, row in zip(names, probabilities, strict=True):
            found = ranked(row, model, top)
            print(_json_line(name, found) if lines else _table_line(name, found, min(width, 60)))
    for entry in bad:
        print(f"{entry['picture']}: {entry['reason']}", file=sys.stderr)
    if not done:
        raise UserError(f"not one of the {len(files)} pictures could be read")
    return {"model": str(spec), "pictures": done, "unreadable": bad}


def ranked(probabilities: Tensor, model: Classifier, top: int) -> list[tuple[str, float]]:
    """The likeliest classes of one picture with their probabilities; names or numbers."""
    values, places = probabilities.topk(top)
    names = model.labels or [str(number) for number in range(model.classes)]
    return [(names[p], v) for p, v in zip(places.tolist(), values.tolist(), strict=True)]


@torch.inference_mode()
def _probabilities(
    model: Classifier,
    files: FileList,
    views: ViewSettings,
    device: torch.device,
    bad: list[dict[str, str]],
) -> Iterator[tuple[list[str], Tensor]]:
    """Names and (B, classes) probabilities, batch by batch; the unreadable go to `bad`."""
    for start in range(0, len(files), BATCH):
        names, images = [], []
        for index in range(start, min(start + BATCH, len(files))):
            try:
                view, _ = make_views(files.read(index), views, _NO_CHANCE)
            except BadPicture as error:
                bad.append({"picture": files.identity(index), "reason": error.reason})
                continue
            assert view is not None
            names.append(files.identity(index))
            images.append(view)
        if images:
            batch = normalise(torch.stack(images).to(device).float() / 255)
            yield names, model(batch).float().softmax(-1).cpu()


def _json_line(name: str, found: list[tuple[str, float]]) -> str:
    labels = [{"label": label, "probability": round(p, 6)} for label, p in found]
    return json.dumps({"picture": name, "labels": labels}, ensure_ascii=False)


def _table_line(name: str, found: list[tuple[str, float]], width: int) -> str:
    cells = "  ".join(f"{label} {probability:6.1%}" for label, probability in found)
    return f"{name:{width}}  {cells}"
