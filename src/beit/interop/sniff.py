"""What a file is by its first bytes, and a sentence for what it should not be."""

import zipfile
from pathlib import Path
from typing import Literal, NoReturn

from beit.errors import UserError

FileKind = Literal["zip", "pickle"]

ZIP_MAGIC = b"PK\x03\x04"
_LFS = b"version https://git-lfs"
_LOG = (b"--20", b"--19")  # wget's log begins with the date, as in --2021-06-15 12:00:00--
_HEAD = 256
_CONSTANTS = "constants.pkl"  # only TorchScript archives have it


def sniff(path: Path) -> FileKind:
    """Tell torch's zip archives from its older bare pickles, and refuse everything else.

    Raises:
        UserError: It is no file, empty, or plainly something else: a log, a web page, a pointer.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a file") from error
    if head.startswith(ZIP_MAGIC):
        return "zip"
    if head[:1] == b"\x80" and len(head) > 1 and 2 <= head[1] <= 5:
        return "pickle"
    _refuse(path, head)


def _refuse(path: Path, head: bytes) -> NoReturn:
    if not head:
        raise UserError(f"{path} is empty; download it again")
    if head.startswith(_LFS):
        raise UserError(f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull`")
    if head.startswith(_LOG) or b"Resolving " in head or b"HTTP request sent" in head:
        raise UserError(
            f"{path} is wget's log, not a model: `wget -o FILE` writes the log to FILE and the "
            "download elsewhere; download it again with `wget -O FILE` (capital O)"
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path} is a web page, not a model; download the file itself")
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head):
        raise UserError(f"{path} is a text, not a model; download it again")
    raise UserError(f"{path} is neither one of torch's files nor a safetensors file")


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip as torch writes it: nothing compressed, nothing larger than the file itself.

    Raises:
        UserError: It is damaged, compressed (a small file could swell to any size), or TorchScript.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is a damaged archive ({error}); download it again") from error
    members, size = archive.infolist(), path.stat().st_size
    names = [member.filename for member in members]
    complaint = ""
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        complaint = "it is compressed, which torch's files never are"
    elif sum(member.file_size for member in members) > size:
        complaint = "it claims to hold more than its own size"
    elif len(set(names)) != len(names):
        complaint = "it holds two members of one name"
    elif any(name.rpartition("/")[2] == _CONSTANTS for name in names):
        complaint = "it is TorchScript, a program, and programs are not run"
    if complaint:
        archive.close()
        raise UserError(f"{path} is refused: {complaint}")
    return archive
