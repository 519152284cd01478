"""Batches from a source: torch's DataLoader around a pure function of global positions.

A worker is given a run of positions and returns the whole micro-batch, so what it holds depends on
nothing but (seed, positions): not on which worker it was, nor on what came before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from beit.batch import ImageBatch
from beit.data.bad_pictures import BadPictureLog
from beit.data.decode import BadPicture
from beit.data.draws import Key, MaskPlan, colour_draws, draw_masks
from beit.data.fetch import Fetching, WatchedReader, fetch
from beit.data.order import Shares, locate, positions
from beit.data.sources import Source
from beit.data.views import ViewSettings, make_views
from beit.errors import UserError

_MOST_REPLACEMENTS = 100  # unreadable pictures in a row


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are cut and fetched; only seed and batch size decide what is trained on."""

    batch_size: int  # over all ranks and micro-steps
    seed: int = 0
    ranks: int = 1
    rank: int = 0
    accumulation: int = 1
    workers: int = 0
    prefetch: int = 2  # micro-batches a worker has ready
    timeout: float = 300.0  # seconds a worker may take for a micro-batch; 0 = for ever
    pin_memory: bool = False  # for CUDA


@dataclass(frozen=True)
class _Fetched:
    """The pictures of a batch before they are stacked."""

    keys: list[Key]
    views: list[tuple[Tensor | None, Tensor | None]]
    labels: list[int]
    bad: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class _Item:
    """What a worker sends: a batch, or why there is none."""

    batch: ImageBatch | None  # None: no picture of it could be read
    bad: tuple[tuple[int, str], ...] = ()
    refusal: str | None = None  # the message of a UserError; torch would bury it in a traceback

    def pin_memory(self) -> "_Item":
        """Called by torch's loader by name."""
        return replace(self, batch=None if self.batch is None else self.batch.pin_memory())


@dataclass
class _Batches(Dataset[_Item]):
    """Maps a run of positions to a batch. In training a bad picture is replaced, else left out."""

    reader: WatchedReader
    views: ViewSettings
    masks: MaskPlan | None
    seed: int
    training: bool

    @property
    def source(self) -> Source:
        """The pictures."""
        return self.reader.source

    def __getitem__(self, where: range) -> _Item:
        """The micro-batch of these positions."""
        try:
            fetched = self._fetch(self._keys(where))
        except UserError as error:
            return _Item(None, refusal=str(error))
        return _Item(self._stack(fetched) if fetched.keys else None, fetched.bad)

    def _keys(self, where: range) -> list[Key]:
        if not self.training:
            return [Key(self.seed, 0, index) for index in where]
        epochs, indices = locate(self.seed, len(self.source), where)
        places = zip(epochs.tolist(), indices.tolist(), strict=True)
        return [Key(self.seed, epoch, index) for epoch, index in places]

    def _fetch(self, keys: list[Key]) -> _Fetched:
        kept: list[Key] = []
        views, labels, bad = [], [], []
        for key in keys:
            index: int | None = key.index
            image, failures = self._read(key.index)
            if image is None and self.training:
                image, index = self._replacement(key, failures)
            bad += failures
            if image is not None and index is not None:
                kept.append(key)
                views.append(make_views(image, self.views, key))
                labels.append(self.source.label(index))
        return _Fetched(kept, views, labels, tuple(bad))

    def _read(self, index: int) -> tuple[Image.Image | None, list[tuple[int, str]]]:
        try:
            return self.reader.read(index), []
        except BadPicture as error:
            return None, [(index, error.reason)]

    def _replacement(self, key: Key, failures: list[tuple[int, str]]) -> tuple[Image.Image, int]:
        """Another picture in place of a bad one, drawn by the sample's own key (law 1).

        The sample keeps its key, so crop, jitter and mask are those it would have had.
        """
        generator = key.generator("replacement")
        for _ in range(_MOST_REPLACEMENTS):
            index = int(generator.integers(len(self.source)))
            image, failure = self._read(index)
            if image is not None:
                return image, index
            failures += failure
        named = "; ".join(f"{self.source.identity(i)} ({reason})" for i, reason in failures[:5])
        raise UserError(
            f"{len(failures)} pictures in a row of {self.source.name} cannot be read: {named}"
        )

    def _stack(self, fetched: _Fetched) -> ImageBatch:
        keys = fetched.keys
        patch_views, token_views = zip(*fetched.views, strict=True)
        jitter, flip = self.views.jitter, self.views.flip
        return ImageBatch(
            index=torch.tensor([key.index for key in keys]),
            epoch=torch.tensor([key.epoch for key in keys]),
            patch_view=_stacked(patch_views),
            token_view=_stacked(token_views),
            colour=colour_draws(keys, jitter, flip=flip) if self.views.augments else None,
            masks=None if self.masks is None else draw_masks(self.masks, keys),
            label=torch.tensor(fetched.labels),
            replaced=fetched.bad,
        )


def training_batches(
    source: Source,
    views: ViewSettings,
    masks: MaskPlan | None,
    settings: LoaderSettings,
    samples_seen: int,
    *,
    log: BadPictureLog | None = None,
) -> Iterator[ImageBatch]:
    """The micro-batches of this rank, for ever.

    Args:
        source: The pictures.
        views: What is made of each.
        masks: How patches are masked; None = the batch has no masks.
        settings: Batch, ranks, workers.
        samples_seen: Samples of the global batches already trained on; the whole state.
        log: Takes the bad pictures and stops the run when there are too many.

    Raises:
        UserError: The source is empty, the batch cannot be cut, or too many pictures are bad.
        LoaderError: A worker died or hangs.
    """
    if len(source) == 0:
        raise UserError(f"{source.name} holds no picture to train on")
    shares = Shares(settings.batch_size, settings.ranks, settings.rank, settings.accumulation)
    reader = WatchedReader(source, settings.workers)
    batches = _Batches(reader, views, masks, settings.seed, True)
    how = Fetching(settings.workers, settings.prefetch, settings.timeout, settings.pin_memory)
    return _logged(fetch(batches, positions(shares, samples_seen), reader, how), log)


def evaluation_batches(
    source: Source,
    views: ViewSettings,
    masks: MaskPlan | None,
    batch_size: int,
    workers: int = 0,
    *,
    seed: int = 0,
    share: tuple[int, int] = (0, 1),
    log: BadPictureLog | None = None,
) -> Iterator[ImageBatch]:
    """Each picture once, in order; the last batch is smaller.

    Masks (and crops, should `views` be random) are drawn as those of epoch 0 of `seed`, the same
    at every call. Bad pictures are left out and named in the batch, or with the log when a whole
    batch is bad.

    Args:
        source: The pictures.
        views: What is made of each.
        masks: How patches are masked, None = not.
        batch_size: Pictures at once.
        workers: Processes.
        seed: Of the masks.
        share: (rank, ranks): this rank's contiguous share of the pictures.
        log: Takes the bad pictures.
    """
    rank, ranks = share
    start, stop = len(source) * rank // ranks, len(source) * (rank + 1) // ranks
    where = [
        range(first, min(first + batch_size, stop)) for first in range(start, stop, batch_size)
    ]
    how = Fetching(min(workers, len(where)))
    reader = WatchedReader(source, how.workers)
    batches = _Batches(reader, views, masks, seed, False)
    return _logged(fetch(batches, where, reader, how), log)


def _logged(items: Iterator[_Item], log: BadPictureLog | None) -> Iterator[ImageBatch]:
    for item in items:
        if item.refusal is not None:
            raise UserError(item.refusal)
        if log is not None:
            log.add(item.bad)
        if item.batch is not None:
            yield item.batch


def _stacked(views: Sequence[Tensor | None]) -> Tensor | None:
    present = [view for view in views if view is not None]
    return torch.stack(present) if present else None
