"""Reading a tokenizer that a run is given: ours, or DALL-E's."""

import sys
from pathlib import Path

from beit.commands.assembly.saved_models import load, what
from beit.engine.distribution import current_world
from beit.errors import UserError
from beit.interop.dalle import is_dalle, read_dalle
from beit.tokenizer.dvae import DiscreteVAE


def load_tokenizer(folder: Path) -> DiscreteVAE:
    """Load a tokenizer's folder, or DALL-E's `encoder.pkl`, and refuse anything else."""
    if is_dalle(folder):
        read = read_dalle(folder)
        for note in read.notes if current_world().main else ():
            print(f"note: {note}", file=sys.stderr, flush=True)
        return read.model
    if folder.is_file():
        raise UserError(
            f"{folder} is no tokenizer; give the run folder of one, or DALL-E's encoder.pkl"
        )
    model = load(folder)
    if not isinstance(model, DiscreteVAE):
        own = folder / "tokenizer"
        hint = f": its own is in {own}" if own.is_dir() else ""
        raise UserError(f"{folder} holds {what(model)}; a tokenizer is wanted{hint}")
    return model
