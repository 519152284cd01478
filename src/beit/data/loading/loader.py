"""Batches from a source: torch's DataLoader around a pure function of global positions.

A worker is given a run of positions and returns the whole micro-batch, so what it holds depends on
nothing but (seed, positions): not on which worker it was, nor on what came before.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic

from torch import Tensor
from torch.utils.data import Dataset

from beit.batch import ImageBatch
from beit.data.decoding.decode import BadPicture
from beit.data.loading.order import locate, positions
from beit.data.loading.samples import Codes, Kind, Pieces, Sample, Views, WholePairs
from beit.data.pairs.pairs import PairSource
from beit.data.reading.bad_pictures import BadPictureTaker
from beit.data.reading.fetch import Fetching, WatchedReader, fetch
from beit.data.sources.opening import Source
from beit.data.views.draws import Key, MaskPlan
from beit.data.views.joint_views import JointViewSettings
from beit.data.views.views import ViewSettings
from beit.errors import UserError
from beit.shares import Shares

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
    views: int | None = None  # of each picture, used again in turn; None = a new one each epoch


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
class _Batches(Dataset[_Item], Generic[Sample]):
    """Maps a run of positions to a batch.

    Positions are places in the order of training (`beit.data.loading.order`) or, not shuffled, in
    that of the source, one epoch after the other.
    """

    kind: Kind[Sample]
    seed: int
    replaces: bool  # bad pictures; else they are left out
    shuffled: bool
    views: int | None = None  # as in `LoaderSettings`

    @property
    def source(self) -> Source:
        """The pictures."""
        return self.kind.reader.source

    def __getitem__(self, where: range) -> _Item:
        """The micro-batch of these positions."""
        kept: list[Key] = []
        samples: list[Sample] = []
        bad: list[tuple[int, str]] = []
        try:
            for key in self._keys(where):
                sample = self._sample(key, bad)
                if sample is not None:
                    kept.append(key)
                    samples.append(sample)
            if not kept:
                return _Item(None, tuple(bad))
            batch = self.kind.batch(kept, samples)
        except UserError as error:
            return _Item(None, refusal=str(error))
        return _Item(replace(batch, replaced=tuple(bad)), tuple(bad))

    def _keys(self, where: range) -> list[Key]:
        size = len(self.source)
        epochs, indices = locate(self.seed, size, where, shuffled=self.shuffled)
        places = zip(epochs.tolist(), indices.tolist(), strict=True)
        views = self.views
        return [Key(self.seed, e, i, None if views is None else e % views) for e, i in places]

    def _sample(self, key: Key, bad: list[tuple[int, str]]) -> Sample | None:
        """The sample of a key; None when it is bad and not to be replaced."""
        try:
            return self.kind.sample(key.index, key)
        except BadPicture as error:
            bad.append((key.index, error.reason))
            return self._replacement(key, bad) if self.replaces else None

    def _replacement(self, key: Key, bad: list[tuple[int, str]]) -> Sample:
        """Another picture in place of a bad one, drawn by the sample's own key (law 1).

        The sample keeps its key, so crop, jitter and mask are those it would have had.
        """
        generator = key.generator("replacement")
        start = len(bad) - 1
        for _ in range(_MOST_REPLACEMENTS):
            index = int(generator.integers(len(self.source)))
            try:
                return self.kind.sample(index, key)
            except BadPicture as error:
                bad.append((index, error.reason))
        failures = dict(bad[start:])
        some = list(failures.items())[:5]
        named = "; ".join(f"{self.source.identity(index)} ({reason})" for index, reason in some)
        raise UserError(
            f"{len(failures)} of {len(self.source)} pictures of {self.source.name} were tried, and "
            f"none can be read: {named}; `beit data check` names all that have to go"
        )


def training_batches(
    source: Source,
    views: ViewSettings,
    masks: MaskPlan | None,
    settings: LoaderSettings,
    samples_seen: int,
    *,
    codes: Codes | None = None,
    log: BadPictureTaker | None = None,
) -> Iterator[ImageBatch]:
    """The micro-batches of this rank, for ever.

    Args:
        source: The pictures.
        views: What is made of each.
        masks: How patches are masked; None = the batch has no masks.
        settings: Batch, ranks, workers.
        samples_seen: Samples of the global batches already trained on; the whole state.
        codes: Visual tokens of the views, to travel with them.
        log: Takes the bad pictures and stops the run when there are too many.

    Raises:
        UserError: The source is empty, the batch cannot be cut, or too many pictures are bad.
        LoaderError: A worker died or hangs.
    """
    kind = Views(WatchedReader(source, settings.workers), views, masks, codes)
    return _endless(kind, settings, samples_seen, log)


def _endless(
    kind: Kind[Sample], settings: LoaderSettings, samples_seen: int, log: BadPictureTaker | None
) -> Iterator[ImageBatch]:
    """This rank's micro-batches of any kind, for ever."""
    source = kind.reader.source
    if len(source) == 0:
        raise UserError(f"{source.name} holds no picture to train on")
    shares = Shares(settings.batch_size, settings.ranks, settings.rank, settings.accumulation)
    batches = _Batches(kind, settings.seed, True, True, settings.views)
    how = Fetching(settings.workers, settings.prefetch, settings.timeout, settings.pin_memory)
    return _logged(fetch(batches, positions(shares, samples_seen), kind.reader, how), log)


def evaluation_batches(
    source: Source,
    views: ViewSettings,
    masks: MaskPlan | None,
    batch_size: int,
    workers: int = 0,
    *,
    seed: int = 0,
    share: tuple[int, int] = (0, 1),
    log: BadPictureTaker | None = None,
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
    where = _runs(len(source), batch_size, share)
    how = Fetching(min(workers, len(where)))
    reader = WatchedReader(source, how.workers)
    batches = _Batches(Views(reader, views, masks), seed, False, False)
    return _logged(fetch(batches, where, reader, how), log)


def ordered_batches(
    source: Source,
    views: ViewSettings,
    settings: LoaderSettings,
    where: Iterable[range],
    *,
    log: BadPictureTaker | None = None,
) -> Iterator[ImageBatch]:
    """The views that training sees, in the order of the source: what a token bank is made of.

    Args:
        source: The pictures.
        views: What is made of each.
        settings: Seed and workers.
        where: A batch each: position p is picture p % N in epoch p // N.
        log: Takes the bad pictures, which are replaced as in training.
    """
    reader = WatchedReader(source, settings.workers)
    batches = _Batches(Views(reader, views, None), settings.seed, True, False)
    how = Fetching(settings.workers, settings.prefetch, settings.timeout, settings.pin_memory)
    return _logged(fetch(batches, where, reader, how), log)


def pair_batches(
    source: PairSource,
    views: JointViewSettings,
    settings: LoaderSettings,
    samples_seen: int,
    *,
    log: BadPictureTaker | None = None,
) -> Iterator[ImageBatch]:
    """The micro-batches of pieces of pictures and masks of this rank, for ever.

    As `training_batches`, and by the same law; the masks travel as `ImageBatch.target`.

    Args:
        source: The pictures and their masks.
        views: What is made of each.
        settings: Batch, ranks, workers.
        samples_seen: Samples of the global batches already trained on; the whole state.
        log: Takes the bad pictures, and those with a bad mask, and stops the run when there are too
            many.

    Raises:
        UserError: The source is empty, the batch cannot be cut, or too many pictures are bad.
        LoaderError: A worker died or hangs.
    """
    kind = Pieces(WatchedReader(source, settings.workers), source, views)
    return _endless(kind, settings, samples_seen, log)


@dataclass(frozen=True)
class WholePair:
    """A picture of any size with the class of each of its pixels."""

    index: int
    image: Tensor  # (3, H, W) uint8
    mask: Tensor  # (H, W) uint8, 255 = ignored


def whole_pairs(
    source: PairSource,
    share: tuple[int, int] = (0, 1),
    *,
    workers: int = 0,
    log: BadPictureTaker | None = None,
) -> Iterator[WholePair]:
    """Each picture once as it is, with its mask, in order.

    Args:
        source: The pictures and their masks.
        share: (rank, ranks): this rank's contiguous share of the pictures.
        workers: Processes.
        log: Takes the bad pictures, which are left out.

    Raises:
        UserError: There are too many bad pictures; without a log, there is one.
        LoaderError: A worker died or hangs.
    """
    where = _runs(len(source), 1, share)
    how = Fetching(min(workers, len(where)))
    reader = WatchedReader(source, how.workers)
    items = fetch(_Batches(WholePairs(reader, source), 0, False, False), where, reader, how)
    for batch in _logged(items, log or _Refusal(source)):
        assert batch.patch_view is not None and batch.target is not None
        yield WholePair(int(batch.index), batch.patch_view[0], batch.target[0])


@dataclass(frozen=True)
class _Refusal:
    """Stands where nobody takes bad pictures: a score over fewer of them would be another one."""

    source: Source

    def add(self, replaced: Sequence[tuple[int, str]]) -> None:
        """Refuse the first bad picture."""
        for index, reason in replaced:
            name = self.source.identity(index)
            raise UserError(f"{name} of {self.source.name} cannot be read ({reason}): remove it")


def _runs(count: int, batch_size: int, share: tuple[int, int]) -> list[range]:
    """This rank's contiguous share of some places, in runs of a batch."""
    rank, ranks = share
    start, stop = count * rank // ranks, count * (rank + 1) // ranks
    return [range(first, min(first + batch_size, stop)) for first in range(start, stop, batch_size)]


def _logged(items: Iterator[_Item], log: BadPictureTaker | None) -> Iterator[ImageBatch]:
    for item in items:
        if item.refusal is not None:
            raise UserError(item.refusal)
        if log is not None:
            log.add(item.bad)
        if item.batch is not None:
            yield item.batch
