"""The pictures that could not be read: counted, named in the run folder, and a reason to stop."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol

from beit.data.sources.opening import Source
from beit.errors import UserError
from beit.files import naming

FILE_NAME = "bad_pictures.jsonl"
_SHOWN = 5


class BadPictureTaker(Protocol):
    """Whoever is told of the pictures that could not be read."""

    def add(self, replaced: Sequence[tuple[int, str]]) -> None:
        """Take the (index, reason) of a batch's bad pictures, if there are any."""
        ...


class BadPictureLog:
    """Appends each bad picture once to a file of JSON lines: index, path, reason.

    Several ranks may share one file: each reads what the others added before it counts.
    """

    def __init__(
        self, folder: Path, source: Source, most: float = 0.01, *, name: str = FILE_NAME
    ) -> None:
        """Open the log of a run.

        Args:
            folder: The run folder; an existing log goes on.
            source: Names the pictures and says how many there are.
            most: Share of bad pictures above which the run stops.
            name: Of the file in the folder.
        """
        self._path = folder / name
        self._source = source
        self._most = most
        self._offset = 0
        self._reasons: dict[int, tuple[str, str]] = {}

    @property
    def count(self) -> int:
        """Distinct bad pictures so far."""
        return len(self._reasons)

    def add(self, replaced: Sequence[tuple[int, str]]) -> None:
        """Note the bad pictures of a batch.

        Raises:
            UserError: Their share has passed the limit; the message names the first of them.
        """
        if not replaced:
            return
        self._catch_up()
        for index, reason in replaced:
            if index not in self._reasons:
                self._append(index, reason)
        if self.count > self._most * len(self._source):
            raise UserError(self._too_many())

    def _append(self, index: int, reason: str) -> None:
        path = self._source.identity(index)
        self._reasons[index] = (path, reason)
        line = json.dumps({"index": index, "path": path, "reason": reason}) + "\n"
        # One write at the end of the file: lines of several ranks do not mix.
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"  # by a crash
            with naming(self._path):
                os.write(descriptor, (b"\n" if cut else b"") + line.encode())
        finally:
            os.close(descriptor)

    def _catch_up(self) -> None:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                self._read_lines(file)
        except FileNotFoundError:
            return

    def _read_lines(self, file: IO[bytes]) -> None:
        for line in file:
            if not line.endswith(b"\n"):  # another rank is writing it
                return
            self._offset += len(line)
            try:
                entry = json.loads(line)
                self._reasons[int(entry["index"])] = (str(entry["path"]), str(entry["reason"]))
            except (ValueError, KeyError, TypeError):  # a line cut by a crash
                continue

    def _too_many(self) -> str:
        head = "; ".join(
            f"{path} ({reason})" for path, reason in list(self._reasons.values())[:_SHOWN]
        )
        share = self.count / len(self._source)
        return (
            f"{self.count} of {len(self._source)} pictures ({share:.1%}) cannot be read, more than "
            f"the {self._most:.1%} allowed: {head}{'; ...' if self.count > _SHOWN else ''} "
            f"(all in {self._path}); remove them, or allow a larger share by --data.bad_share "
            "(--tokenizer.data.bad_share while a pre-training trains its tokenizer) and --resume"
        )
