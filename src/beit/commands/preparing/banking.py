"""Token banks: made for a recipe, and refused where they are not of the run."""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace as with_fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from beit.commands.assembly.build import (
    choose_device,
    encoder_config_of,
    loader_settings,
    token_reader,
    view_settings,
)
from beit.commands.assembly.stage import RunRequest
from beit.commands.assembly.token_precision import with_token_precision
from beit.commands.assembly.tokenizers import load_tokenizer
from beit.commands.assembly.unfinished import Progress, partial, unfinished
from beit.data.loading.loader import LoaderSettings, ordered_batches
from beit.data.reading.bad_pictures import BadPictureLog
from beit.data.sources.file_table import changed_files, keep_files
from beit.data.sources.opening import Source, open_parts
from beit.data.views.augment import prepare
from beit.data.views.views import ViewSettings
from beit.engine.distribution import World, process_group
from beit.errors import UserError
from beit.recipes.models import PretrainRecipe
from beit.recipes.overrides import replace
from beit.tokenizer import bank, storage
from beit.tokenizer.bank import BankManifest, BankOrigin, BankWriter, TokenBank
from beit.tokenizer.dvae import DiscreteVAE
from beit.tokenizer.reading import Agreement, TokenReader, agreement

PART = 4096  # views that are brought to the disk together
_AT_ONCE = {"cpu": 64, "cuda": 256}  # pictures tokenized together
_LOOKED_AT = 32  # pictures that a run compares before it begins
_TRUSTED = 0.9  # least share of equal codes; other hardware changes far fewer
_A_DAY = 86_400.0


def make_bank(
    recipe: PretrainRecipe, request: RunRequest, tokenizer: str | Path, views: int | None = None
) -> dict[str, Any]:
    """Compute the visual tokens of every view that a run will see, into `request.out`.

    A bank that was interrupted is gone on with, by any number of processes; what it holds does not
    depend on either.

    Args:
        recipe: Of the run: its views, seed and length.
        request: Where from, where to, on what.
        tokenizer: Run folder of a tokenizer, or DALL-E's `encoder.pkl`.
        views: Views of each picture, to be used again in turn; None is a new one each epoch.

    Raises:
        UserError: The recipe needs no tokens, or the bank cannot be made there.
    """
    device = choose_device(request.device)
    with process_group(device.type) as world:
        if recipe.objective.target == "pixels":
            raise UserError("a bank has no use: objective.target is pixels")
        if views is not None:
            recipe = replace(recipe, {"tokens.views": views})
        recipe = with_token_precision(recipe, device)
        source, _ = open_parts(request.data, rescan=True)
        vae = load_tokenizer(Path(tokenizer)).to(device).requires_grad_(False).eval()
        reader = token_reader(recipe, vae)
        manifest = manifest_of(recipe, reader.model, source, device)
        if not _is_there(request.out, manifest, source, main=world.main):
            _make(recipe, request, world, (source, reader, manifest), device)
        if not world.main:
            return {}
    return {
        "bank": str(request.out),
        "pictures": len(source),
        "views": manifest.views,
        "used_again": manifest.again,
        "grid": manifest.origin.grid,
        "vocabulary": manifest.origin.vocabulary,
        "bytes": manifest.size,
        "tokenizer": manifest.origin.tokenizer,
    }


def manifest_of(
    recipe: PretrainRecipe, tokenizer: DiscreteVAE, source: Source, device: torch.device
) -> BankManifest:
    """What a bank for this run is to hold."""
    if tokenizer.vocabulary > bank.MOST_CODES:
        raise UserError(
            f"the tokenizer has {tokenizer.vocabulary:,} codes, more than the {bank.MOST_CODES:,} "
            "that a bank can keep; pre-train with live tokens"
        )
    made = {name: version(name) for name in ("torch", "torchvision", "pillow")}
    again = recipe.tokens.views is not None
    origin = origin_of(recipe, tokenizer, source)
    return BankManifest(
        origin, views_needed(recipe, len(source)), again, {**made, "device": device.type}
    )


def origin_of(recipe: PretrainRecipe, tokenizer: DiscreteVAE, source: Source) -> BankOrigin:
    """All that the codes of a run depend on."""
    views = _views(recipe, tokenizer)
    made_by = {"crop scale": views.scale, "crop ratio": views.ratio, "jitter": views.jitter}
    return BankOrigin(
        tokenizer=storage.fingerprint(tokenizer),
        precision=recipe.tokens.precision,
        data=source.fingerprint,
        pictures=len(source),
        seed=recipe.engine.seed,
        views={**made_by, "flip": views.flip, "size": views.token_view},
        grid=encoder_config_of(recipe.encoder).grid,
        vocabulary=tokenizer.vocabulary,
    )


def views_needed(recipe: PretrainRecipe, pictures: int) -> int:
    """Views of each picture that a run sees, those that it uses again counted once."""
    samples = recipe.optim.total_steps(pictures) * recipe.optim.batch
    epochs = math.ceil(samples / max(1, pictures))
    return epochs if recipe.tokens.views is None else min(epochs, recipe.tokens.views)


def recipe_with_bank(recipe: PretrainRecipe, given: TokenBank) -> PretrainRecipe:
    """The recipe, using views again when the bank was made for that.

    Raises:
        UserError: The recipe has no use for tokens.
    """
    if recipe.objective.target == "pixels":
        raise UserError(f"--bank {given.folder} has no use: objective.target is pixels")
    if recipe.tokens.views is None and given.manifest.again:
        return replace(recipe, {"tokens.views": given.manifest.views})
    return recipe


def refuse_other_bank(
    recipe: PretrainRecipe,
    given: TokenBank,
    tokenizer: DiscreteVAE,
    source: Source,
    world: World,
) -> None:
    """See that a bank holds the codes of a run, on the first rank by each of their bytes.

    Every rank must call this, and leaves it when the first one has read them all.

    Raises:
        UserError: It does not; the sentence says what differs.
    """
    difference = _other_files(given.folder, source)
    difference = difference or given.manifest.difference(origin_of(recipe, tokenizer, source))
    if difference is not None:
        raise UserError(
            f"the bank {given.folder} is of {difference}; make one for this run with `beit bank`"
        )
    there, needed = given.manifest.views, views_needed(recipe, len(source))
    if there < needed:
        raise UserError(
            f"the bank {given.folder} holds {there} views of each picture and the run takes "
            f"{needed}; make a larger bank, or use views again by --tokens.views {there}"
        )
    if world.main:
        given.verify(needed)
    world.barrier(_A_DAY)  # hundreds of gigabytes take longer than any other wait is given


def compare_codes(
    recipe: PretrainRecipe,
    tokenizer: DiscreteVAE,
    source: Source,
    device: torch.device,
    given: TokenBank | None,
) -> Agreement | None:
    """Tell how far cheap or kept codes are those of the exact tokenizer, on a few pictures.

    None where a run tokenizes exactly. The pictures are the first ones of the source.

    Raises:
        UserError: A bank's codes are others than this machine computes, or the tokenizer's values
            are too large, or its codes too close, for half precision.
    """
    if given is None and recipe.tokens.precision == "float32":
        return None
    settings = LoaderSettings(_LOOKED_AT, seed=recipe.engine.seed)
    where = [range(min(_LOOKED_AT, len(source)))]
    batch = next(ordered_batches(source, _views(recipe, tokenizer), settings, where))
    batch = prepare(batch.to(device))
    assert batch.token_view is not None
    codes = token_reader(recipe, tokenizer, once=True).codes(batch.token_view)
    if given is None:
        return _compared_cheap(recipe, codes, TokenReader(tokenizer).codes(batch.token_view))
    kept = given.read([0] * len(batch.index), batch.index.tolist())
    return _compared_kept(given, kept, codes)


def _compared_cheap(recipe: PretrainRecipe, found: Tensor, exact: Tensor) -> Agreement:
    alike = agreement(found, exact)
    told = f"tokens in {recipe.tokens.precision}: {alike}"
    if alike.share < _TRUSTED:
        raise UserError(
            f"{told}, too few to train on; begin again in another --out with "
            "--tokens.precision float32, and --tokenizer with the tokenizer of this run"
        )
    print(told, file=sys.stderr, flush=True)
    return alike


def _compared_kept(bank: TokenBank, kept: Tensor, computed: Tensor) -> Agreement:
    alike = agreement(kept, computed)
    if alike.share < _TRUSTED:
        made = json.dumps(dict(bank.manifest.made))
        raise UserError(
            f"the bank {bank.folder} is not what is computed here: {alike} on the first pictures; "
            f"it was made with {made}"
        )
    print(f"bank {bank.folder}: {alike} with live ones", file=sys.stderr, flush=True)
    return alike


def _views(recipe: PretrainRecipe, tokenizer: DiscreteVAE) -> ViewSettings:
    grid = encoder_config_of(recipe.encoder).grid
    return view_settings(recipe.views, token_view=tokenizer.config.view_size(grid))


def _other_files(folder: Path, source: Source) -> str | None:
    change = changed_files(folder, source)
    return None if change is None else f"other pictures ({change})"


def _is_there(out: Path, manifest: BankManifest, source: Source, *, main: bool) -> bool:
    """Whether this very bank was made before.

    Raises:
        UserError: It was, and is damaged.
    """
    if not (out / bank.MANIFEST).is_file():
        return False
    found = TokenBank(out)
    there = found.manifest
    same = (_other_files(out, source) or there.difference(manifest.origin)) is None
    same = same and (there.views, there.again) == (manifest.views, manifest.again)
    if same and main:
        found.verify()
    return same


def _make(
    recipe: PretrainRecipe,
    request: RunRequest,
    world: World,
    what: tuple[Source, TokenReader, BankManifest],
    device: torch.device,
) -> None:
    source, reader, manifest = what
    with unfinished(
        request.out, 0 if _begun(request.out) else manifest.size, main=world.main
    ) as to:
        if world.main:
            _begin(to, manifest, reader.model, source)
        world.barrier()
        log = BadPictureLog(to, source, recipe.data.bad_share)
        loader = with_fields(loader_settings(recipe, world, device), views=None)
        views = _views(recipe, reader.model)
        total = math.prod(manifest.shape[:2])
        where = list(_missing(to, total, world))
        world.barrier()  # a part that another rank logs before this one looks would shift its share
        progress = Progress("views", total, total - world.size * sum(map(len, where)))
        batches = (b for part in where for b in _batches(part, _AT_ONCE[device.type]))
        writer = BankWriter(to, manifest, PART, world.rank)
        try:
            for batch in ordered_batches(source, views, loader, batches, log=log):
                ready = prepare(batch.to(device))
                assert ready.token_view is not None
                start = int(batch.epoch[0]) * len(source) + int(batch.index[0])
                writer.write(start, reader.codes(ready.token_view))
                stop = start + len(batch.index)
                if stop % PART == 0 or stop == total:
                    writer.log((stop - 1) // PART)
                if world.main:
                    progress.add(world.size * len(batch.index))
        finally:
            writer.close()
        world.barrier(_A_DAY)
        if world.main:
            BankWriter.finish(to)


def _begun(out: Path) -> bool:
    return (partial(out) / bank.MANIFEST).is_file()


def _begin(folder: Path, manifest: BankManifest, tokenizer: DiscreteVAE, source: Source) -> None:
    """Make room, or see that what was begun there is this bank."""
    if (folder / bank.MANIFEST).is_file():
        there = bank.read_manifest(folder)
        difference = _other_files(folder, source) or there.difference(manifest.origin)
        if difference is None and (there.views, there.again) != (manifest.views, manifest.again):
            difference = f"{there.views} views of each picture, not {manifest.views}"
        if difference is not None:
            raise UserError(
                f"{folder} holds the beginning of a bank of {difference}; remove it, or choose "
                "another --out"
            )
        return
    storage.save(tokenizer, folder / bank.TOKENIZER)
    keep_files(folder, source)
    BankWriter.begin(folder, manifest)


def _missing(folder: Path, total: int, world: World) -> Iterator[range]:
    """The parts that are still to be made, those of this rank."""
    done = bank.finished_parts(folder, PART)
    missing = [n for n in range(math.ceil(total / PART)) if n not in done]
    for number in missing[world.rank :: world.size]:
        yield range(number * PART, min(total, (number + 1) * PART))


def _batches(part: range, size: int) -> Iterator[range]:
    for start in range(part.start, part.stop, size):
        yield range(start, min(start + size, part.stop))
