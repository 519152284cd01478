"""torch's DataLoader with what it lacks: errors that name the picture, and no side effects."""

import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pickle import PicklingError
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from beit.data.decoding.decode import decode_pixels, pixels_of
from beit.data.reading.watch import Breadcrumbs, LoaderError
from beit.data.sources.opening import HasBytes, Source
from beit.errors import UserError

_Item = TypeVar("_Item")
_LOOK_EVERY = 1.0  # seconds


@dataclass(frozen=True)
class Fetching:
    """How items are fetched; nothing here changes what they are."""

    workers: int = 0
    prefetch: int = 2  # items a worker has ready
    timeout: float = 300.0  # seconds a worker may take for an item; 0 = for ever
    pin_memory: bool = False


class WatchedReader:
    """A source that notes which picture each worker is reading."""

    def __init__(self, source: Source, workers: int) -> None:
        self.source = source
        self.crumbs = Breadcrumbs(workers)
        self._files = source if isinstance(source, HasBytes) else None

    def read(self, index: int) -> Image.Image:
        """As `Source.read`."""
        with self.watching(index):
            return self.source.read(index)

    def pixels(self, index: int) -> Tensor:
        """What is read as (3, H, W) uint8 in (H, W, 3) memory; raises `BadPicture`."""
        with self.watching(index):
            if self._files is not None:
                return decode_pixels(self._files.read_bytes(index))
            return pixels_of(self.source.read(index))

    @contextmanager
    def watching(self, index: int) -> Iterator[None]:
        """Note that what is done inside is done for picture `index`."""
        worker = get_worker_info()
        slot = 0 if worker is None else worker.id
        self.crumbs.reading(slot, index)
        try:
            yield
        finally:
            self.crumbs.done(slot)

    def start_worker(self, worker: int) -> None:
        """Called in each worker first. Ctrl-C is left to the main process, which ends them."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        torch.set_num_threads(1)
        self.crumbs.reading(worker, -1)


def fetch(
    items: "Dataset[_Item]", where: Iterable[range], reader: WatchedReader, how: Fetching
) -> Iterator[_Item]:
    """Map runs of positions to items, in order, with workers or without.

    Raises:
        LoaderError: A worker died or took too long; the message names what it was reading.
    """
    busy = how.workers > 0
    loader: DataLoader[_Item] = DataLoader(
        items,
        batch_size=None,  # an item is a whole batch already
        sampler=where,
        collate_fn=_as_it_is,
        num_workers=how.workers,
        prefetch_factor=how.prefetch if busy else None,
        timeout=_LOOK_EVERY if busy else 0,
        pin_memory=how.pin_memory,
        generator=torch.Generator(),  # or the loader would take a number from torch's own
        worker_init_fn=reader.start_worker,
    )
    iterator = _started(loader, reader)
    while True:
        try:
            item = _next(iterator, reader, how)
        except StopIteration:
            return
        except LoaderError as error:
            # Frames of what went before would keep the loader and its workers alive.
            error.__cause__ = error.__context__ = None
            reader.crumbs.end_workers()
            del iterator
            raise
        yield item


def _next(iterator: "Iterator[_Item]", reader: WatchedReader, how: Fetching) -> _Item:
    """Wait for the next item, looking after the workers every second.

    torch's own time limit, were it the user's, would be all that looks at them meanwhile. When it
    has passed nothing has been taken from the queue, so asking again is safe.
    """
    began = time.monotonic()
    while True:
        try:
            return next(iterator)
        except (RuntimeError, OSError, EOFError) as error:
            if not _is_torchs(error, how):
                raise
            if not str(error).startswith("DataLoader timed out"):
                raise reader.crumbs.died(reader.source, error) from None
        if how.timeout and time.monotonic() - began >= how.timeout:
            raise reader.crumbs.late(reader.source, how.timeout)


def _is_torchs(error: Exception, how: Fetching) -> bool:
    """Whether an error is about the workers themselves, not one that was raised inside of them.

    A worker that dies with a batch half handed over shows as a broken connection.
    """
    text = str(error)
    broken = isinstance(error, (OSError, EOFError)) and not text.startswith("Caught ")
    return how.workers > 0 and (broken or text.startswith("DataLoader "))


def _started(loader: "DataLoader[_Item]", reader: WatchedReader) -> "Iterator[_Item]":
    """Start the workers; what cannot be sent to one that is not forked is the user's own."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got pickle error")
            return _quiet_iterator(loader)
    except (PicklingError, AttributeError, TypeError) as error:
        if "pickle" not in str(error):
            raise
        raise UserError(
            f"{reader.source.name} cannot be sent to a loader's process ({error}): define its "
            "class, and a masking of your own, at the top of a file, or set data.workers 0"
        ) from error


def _quiet_iterator(loader: "DataLoader[_Item]") -> "Iterator[_Item]":
    """Start the loader without its SIGCHLD handler.

    That handler raises wherever the program happens to be, far from anybody who could name the
    picture; without it the loader notices a dead worker when it next waits for an item. In other
    threads than the main one the loader sets none.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)  # and once only: it has asked for the first items already
    before = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    signal.signal(signal.SIGCHLD, before)
    return iterator


def _as_it_is(item: Any) -> Any:
    return item
