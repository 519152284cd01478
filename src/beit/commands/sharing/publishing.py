"""The hub: models from `hf://owner/name`, and runs to it with a card that tells their story."""

import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit.commands.assembly import saved_models
from beit.commands.assembly.saved_models import Model
from beit.commands.sharing.model_card import Story, card, story_of
from beit.commands.sharing.private_paths import without_paths
from beit.errors import UserError
from beit.files import (
    atomic_write_bytes,
    human_bytes,
    json_of_measured,
    read_json_object,
    sha256_of,
)
from beit.interop import hub
from beit.nn.encoder import Encoder
from beit.recipes.recipe_files import PUBLISHED

CARD = "README.md"
RESULT = "result.json"
TOKENIZER = "tokenizer"
MODEL_FILES = (hub.CONFIG, hub.WEIGHTS)
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")


@dataclass(frozen=True)
class Publication:
    """What a card cannot know by itself.

    Attributes:
        licence: The hub's name of a licence, such as "apache-2.0" or "cc-by-nc-4.0".
        private: Whether only you can see the repository.
        token: For the hub; by default the one that `hf auth login` left.
        data: What the pictures are called in public; by default the last part of their path.
        note: Markdown that is added to the card: what it is good for, and what not.
    """

    licence: str | None = None
    private: bool = True
    token: str | None = None
    data: str | None = None
    note: str = ""


def push(
    run: str | Path,
    target: str | Path,
    *,
    token: str | None = None,
    private: bool = True,
    licence: str | None = None,
    data: str | None = None,
    note: str = "",
) -> dict[str, Any]:
    """Publish a finished run's model with a card that is made from the run.

    Args:
        run: A run folder, its `best`, or a model folder.
        target: `hf://owner/name`, or a folder, which then gets exactly what would be uploaded.
        token: For the hub; by default the one that `hf auth login` left.
        private: Whether only you can see the repository, if it is made now.
        licence: The hub's name of a licence, such as "apache-2.0"; there is no default.
        data: What the pictures are called in public; by default the last part of their path.
        note: Markdown that is added to the card.

    Returns:
        Where it went, and the files with their sizes.

    Raises:
        UserError: The run is not finished, no licence was given, or the target cannot be written.
    """
    wanted = Publication(licence, private, token, data, note)
    source = Path(run)
    model = _publishable(source)
    story = story_of(source, model, wanted.data)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _fill(folder, source, story, _checked_licence(wanted), str(target), wanted.note)
        files = {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        digest = sha256_of(folder / hub.WEIGHTS)
        if str(target).startswith(hub.PREFIX):
            where = _upload(folder, str(target), wanted)
        else:
            where = _copy(folder, Path(target))
    size = human_bytes(sum(files.values()))
    return {"target": where, "files": files, "size": size, "model_sha256": digest}


def _publishable(source: Path) -> Model:
    """The model, loaded as a proof that others will be able to."""
    model = saved_models.load(source)
    if isinstance(model, Encoder) and model.config.channels != 3:
        raise UserError(f"{source} does not take pictures of three colours")
    return model


def _checked_licence(wanted: Publication) -> str:
    if wanted.licence is None:
        raise UserError(
            "under what licence is the model to be published? say so, as in --licence apache-2.0; "
            "what its pictures allow is for you to know"
        )
    if not _LICENCE.fullmatch(wanted.licence):
        raise UserError(f"{wanted.licence!r} is no name of a licence; write one as in apache-2.0")
    return wanted.licence


def _fill(folder: Path, source: Path, story: Story, licence: str, target: str, note: str) -> None:
    """Write what is uploaded: weights, descriptions, and the card."""
    for name in MODEL_FILES:
        shutil.copyfile(source / name, folder / name)
    described = read_json_object(folder / hub.CONFIG)
    _write_json(folder / hub.CONFIG, described)
    tokenizer = story.run / TOKENIZER
    if all((tokenizer / name).is_file() for name in MODEL_FILES):
        (folder / TOKENIZER).mkdir()
        for name in MODEL_FILES:
            shutil.copyfile(tokenizer / name, folder / TOKENIZER / name)
    if story.recipe is not None:
        _write_json(folder / PUBLISHED, story.recipe)
    if story.result:
        _write_json(folder / RESULT, story.result)
    text = card(story, licence, target, note)
    atomic_write_bytes(folder / CARD, text.encode(errors="backslashreplace"))


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    text = json_of_measured(without_paths(value), indent=2, ensure_ascii=False) + "\n"
    atomic_write_bytes(file, text.encode(errors="backslashreplace"))  # a JSON escape as well


def _copy(folder: Path, target: Path) -> str:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is there already; choose another folder or remove it")
    was_there = target.is_dir()
    try:
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.rglob("*")):
            copy = target / path.relative_to(folder)
            if path.is_dir():
                copy.mkdir()
            else:
                shutil.copyfile(path, copy)
    except BaseException as error:
        with suppress(OSError):  # a disk that takes nothing may refuse to remove as well
            _empty(target)  # as it was; half a model is none
            if not was_there:
                target.rmdir()
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"{target} cannot be written ({error.strerror or error}) and is left as it was: "
            "choose another folder, or make room for it there"
        ) from error
    return str(target)


def _empty(folder: Path) -> None:
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _upload(folder: Path, target: str, wanted: Publication) -> str:
    repository = hub.repository(target)
    if repository.revision is not None:
        raise UserError(f"{target}: a push goes to the main branch; leave @{repository.revision}")
    client = hub.require_hub().HfApi(token=wanted.token)
    try:
        with hub.impatient():
            client.create_repo(
                repository.name, private=wanted.private, exist_ok=True, repo_type="model"
            )
            client.upload_folder(
                repo_id=repository.name,
                folder_path=str(folder),
                repo_type="model",
                commit_message="Publish a model of beit's",
                allow_patterns=list(hub.ALLOWED),
            )
    except Exception as error:  # the hub has thirty kinds of errors, and the network its own
        raise UserError(
            f"{target} could not be written ({hub.first_line(error)}); check the name, the network "
            "and your token (`hf auth login`), or push to a folder instead"
        ) from error
    return target
