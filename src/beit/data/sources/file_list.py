"""Pictures that were named one by one: files, folders and patterns, as a source."""

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence

from PIL import Image

from beit.data.decoding.decode import decode, read_bytes
from beit.data.decoding.formats import picture_suffix
from beit.data.sources.index import FolderSource
from beit.data.sources.path_names import encode_path, printable
from beit.errors import UserError


class FileList:
    """Pictures by their paths, unlabelled, in the order given."""

    classes: tuple[str, ...] = ()

    def __init__(self, paths: Sequence[bytes]) -> None:
        self.paths = tuple(paths)
        self.name = f"{len(self.paths)} pictures"
        self.fingerprint = hashlib.sha256(b"\0".join(self.paths)).hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, /) -> Image.Image:
        """Decode picture `index`; raises `BadPicture`."""
        return decode(self.read_bytes(index))

    def read_bytes(self, index: int, /) -> bytes:
        """The file's content; raises `BadPicture`."""
        return read_bytes(self.paths[index])

    def identity(self, index: int, /) -> str:
        """The path as one line of printable text."""
        return printable(self.paths[index])

    def label(self, index: int, /) -> int:
        """Nothing is known of it."""
        del index
        return -1


def named_files(words: Sequence[str | os.PathLike[str]]) -> FileList:
    """Find the pictures that files, folders and patterns (`photos/*.jpg`) name.

    A file is taken whatever it is called; of a folder all pictures below it, in the order of their
    paths. A picture named twice, also by way of a link, is taken once.

    Raises:
        UserError: A word names nothing.
    """
    paths: dict[bytes, bytes] = {}
    for path in (path for word in words for path in _found(os.fspath(word))):
        paths.setdefault(os.path.realpath(path), path)
    return FileList(list(paths.values()))


def _found(word: str) -> Iterator[bytes]:
    path = encode_path(word)
    if os.path.isdir(path):
        folder = FolderSource(path, "all")
        yield from (os.path.join(path, folder.path(place)) for place in range(len(folder)))
    elif os.path.lexists(path):
        yield path
    else:
        matches = sorted(glob.glob(os.path.expanduser(word), recursive=True))
        names = [encode_path(match) for match in matches]
        pictures = [name for name in names if picture_suffix(os.path.basename(name))]
        if not pictures:
            raise UserError(f"{printable(path)} names no picture: no such file, folder or pattern")
        yield from pictures
