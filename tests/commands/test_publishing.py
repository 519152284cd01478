"""The hub without a network: what is uploaded, what is fetched, and what is not."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import beit
from beit.commands.assembly.initial import read_initial
from beit.commands.assembly.saved_models import save_segmenter
from beit.commands.sharing.model_card import card, story_of
from beit.commands.sharing.private_paths import without_paths
from beit.commands.using.finished import read_finished
from beit.errors import UserError
from beit.interop import hub
from beit.nn.classifier import Classifier
from beit.nn.config import EncoderConfig
from beit.nn.decoder_config import decoder_config
from beit.nn.encoder import Encoder
from beit.nn.masked_image_model import MaskedImageModel
from beit.nn.segmenter import build_segmenter
from commands.fine_tuning_runs import classifying, coloured
from commands.recipe_runs import beit as command
from commands.recipe_runs import pretraining
from interop.interop_models import hub_model

ALLOWED = {".safetensors", ".json", ".md"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier's run, in a folder whose name nobody need know."""
    folder = tmp_path_factory.mktemp("secret")
    data = coloured(folder / "my | colours", classes=("blue", "gr`een", "red"))
    done = command(*classifying(folder / "run", data))
    assert done.status == 0, done.err
    return folder / "run"


class FakeHub:
    """The two calls of the hub's client that are made, onto a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[dict[str, Any]] = []
        self.constants = SimpleNamespace(HF_HUB_OFFLINE=False, ENDPOINT="https://hub.invalid")

    def HfApi(self, token: str | None = None) -> FakeHub:
        self.asked.append({"token": token})
        return self

    def create_repo(self, name: str, **how: Any) -> None:
        self.asked.append({"create": name, **how})

    def upload_folder(self, *, repo_id: str, folder_path: str, **how: Any) -> None:
        self.asked.append({"upload": repo_id, **how})
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)

    def snapshot_download(self, name: str, **how: Any) -> str:
        self.asked.append({"download": name, **how})
        if not (self.folder / name).is_dir():
            raise ConnectionError("no such repository\nat all")
        return str(self.folder / name)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "the hub")
    monkeypatch.setattr(hub, "require_hub", lambda: fake)
    monkeypatch.setattr(hub, "_answers", lambda address: True)
    return fake


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("part", ["", "best"])
def test_a_folder_gets_exactly_what_the_hub_gets(
    tmp_path: Path, run: Path, fake: FakeHub, part: str
) -> None:
    folder = tmp_path / "published"
    told = beit.push(run / part, folder, licence="mit")
    beit.push(run / part, "hf://me/colours", licence="mit", token="t", private=False)
    here, there = _files(folder), _files(fake.folder / "me" / "colours")
    assert {Path(name).suffix for name in here} == ALLOWED
    assert told["files"] == {name: len(data) for name, data in here.items()}
    for name in here.keys() - {"README.md"}:  # the card names where it is
        assert here[name] == there[name]
    assert here.keys() == there.keys()
    assert fake.asked[0] == {"token": "t"}
    assert fake.asked[1]["private"] is False and fake.asked[1]["create"] == "me/colours"
    assert set(fake.asked[2]["allow_patterns"]) == {"*.safetensors", "*.json", "*.md"}


def test_what_was_pushed_loads_and_classifies(tmp_path: Path, run: Path, fake: FakeHub) -> None:
    beit.push(run, "hf://me/colours", licence="apache-2.0")
    model, own = beit.load("hf://me/colours"), beit.load(run)
    assert isinstance(model, Classifier) and isinstance(own, Classifier)
    assert model.labels == ("blue", "gr`een", "red")
    for name, value in own.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    assert read_finished("hf://me/colours").facts["view"] == read_finished(run).facts["view"]
    assert read_initial("hf://me/colours").labels == own.labels
    asked = [asked for asked in fake.asked if "download" in asked]
    assert all(set(a["allow_patterns"]) == {"*.safetensors", "*.json", "*.md"} for a in asked)
    done = command("classify", "digits", "--data", run.parent / "my | colours", "--out",
                   tmp_path / "more", "--init", "hf://me/colours", optim__steps=1,
                   encoder__width=16, encoder__depth=2, encoder__heads=2, optim__warmup_steps=0,
                   optim__batch=12)  # fmt: skip
    assert done.status == 0, done.err


def test_the_card_tells_the_run_s_story(tmp_path: Path, run: Path) -> None:
    beit.push(run / "best", tmp_path / "out", licence="cc-by-4.0", note="For *fun* only.")
    text = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "cc-by-4.0" and front["library_name"] == "beit"
    assert front["pipeline_tag"] == "image-classification"
    config = json.loads((run / "best" / "config.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = next(row for row in rows if row["split"] == "val" and row["step"] == config["step"])
    figures = text.split("## Figures")[1].split("##")[0]
    assert f"after step {config['step']}" in figures
    assert f"| top1 | {beit_number(best['top1'])} |" in figures
    for wanted in ('beit.load("hf://owner/name")', "For *fun* only.", "24", "name: digits"):
        assert wanted in text
    assert "`my | colours`".replace("|", "/") in text and "`gr'een`" in text
    assert all(line.count("|") == 3 for line in text.splitlines() if line.startswith("| "))


def beit_number(value: float) -> str:
    from beit.report.text import format_number

    return format_number(value)


def test_the_card_s_command_for_a_segmenter_works_as_it_is(tmp_path: Path) -> None:
    encoder = EncoderConfig((16, 16), (8, 8), width=8, depth=1, heads=1)
    config = decoder_config("pup", encoder, 2, channels=8)
    model = build_segmenter(Encoder(encoder), config, ("dark", "bright"))
    save_segmenter(tmp_path / "model", model, {})
    text = card(story_of(tmp_path / "model", model), "mit", "hf://owner/name")
    assert "`beit predict hf://owner/name PICTURES --out MASKS`" in text


def test_nobody_learns_where_your_files_lie(tmp_path: Path, run: Path) -> None:
    secret = run.parent.name
    assert secret in (run / "source.json").read_text()
    beit.push(run, tmp_path / "out", licence="mit")
    for name, data in _files(tmp_path / "out").items():
        assert secret.encode() not in data, name
    assert (
        without_paths("saw /home/me/secret/cats.png, and 3/4 of a/b")
        == "saw cats.png, and 3/4 of a/b"
    )
    assert without_paths("C:\\Users\\me\\cats") == without_paths("~/My Pictures/cats/") == "cats"
    assert without_paths({"labels": ["/x/y"], "n": ["hf://a/b", "https://x.org/a/b"]}) == {
        "labels": ["/x/y"],
        "n": ["hf://a/b", "https://x.org/a/b"],
    }


def test_a_pre_trained_model_takes_its_tokenizer_along(tmp_path: Path) -> None:
    done = command(*pretraining(tmp_path / "run"))
    assert done.status == 0, done.err
    beit.push(tmp_path / "run", tmp_path / "out", licence="mit", data="digits of the world")
    assert isinstance(beit.load(tmp_path / "out"), MaskedImageModel)
    assert beit.load(tmp_path / "out" / "tokenizer")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "`digits of the world`" in text and "image-feature-extraction" in text
    beit.push(tmp_path / "run" / "tokenizer", tmp_path / "tokenizer", licence="mit")
    assert "image tokenizer" in (tmp_path / "tokenizer" / "README.md").read_text()


def test_a_pushed_pre_training_is_gone_on_with_by_its_tokenizer(
    tmp_path: Path, fake: FakeHub
) -> None:
    assert command(*pretraining(tmp_path / "run")).status == 0
    beit.push(tmp_path / "run", "hf://me/digits", licence="mit")
    fake.asked.clear()
    on = command(*pretraining(tmp_path / "on"), "--init", "hf://me/digits")
    assert on.status == 0, on.err
    assert len(fake.asked) == 1
    ours, theirs = (tmp_path / name / "tokenizer" / "model.safetensors" for name in ("run", "on"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert not (theirs.parent / "metrics.jsonl").exists()  # taken along, not trained


def test_other_people_s_repositories(fake: FakeHub) -> None:
    """A pickle beside the weights is not asked for, and not read where it lies in the cache."""
    theirs = hub_model("BeitForImageClassification", "per-layer", True, use_mean_pooling=True)
    folder = fake.folder / "them" / "beit"
    theirs.save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n.")
    model = beit.load("hf://them/beit@main")
    assert isinstance(model, Classifier)
    assert fake.asked[-1]["revision"] == "main"
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs(images).logits, atol=1e-5, rtol=0)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors.*only models in safetensors"):
        beit.load("hf://them/beit")


def test_a_command_asks_the_hub_once(tmp_path: Path, run: Path, fake: FakeHub) -> None:
    beit.push(run, "hf://me/colours", licence="mit")
    theirs = hub_model("BeitForImageClassification", "per-layer", True, use_mean_pooling=True)
    theirs.save_pretrained(fake.folder / "them" / "beit")
    data = run.parent / "my | colours"
    for spec, out in (("hf://me/colours", tmp_path / "mine"), ("hf://them/beit", tmp_path / "it")):
        for words in (
            ["evaluate", spec, "--data", data],
            ["predict", spec, data],
            ["convert", spec, out, "--to", "beit"],
        ):
            fake.asked.clear()
            command(*words)
            assert len([asked for asked in fake.asked if "download" in asked]) == 1, words
        assert isinstance(beit.load(out), Classifier)


@pytest.mark.parametrize(
    "spec",
    ["hf://", "hf://owner", "hf://owner/name/more", "hf://../name", "hf://a/b@", "hf://a b/c"],
)
def test_names_that_are_no_repository(spec: str, run: Path, fake: FakeHub) -> None:
    with pytest.raises(UserError, match="names no repository"):
        beit.load(spec)
    with pytest.raises(UserError, match="names no repository"):
        beit.push(run, spec, licence="mit")
    assert not [asked for asked in fake.asked if "create" in asked or "download" in asked]


def test_what_cannot_be_had_or_sent_is_one_sentence(
    run: Path, fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UserError, match=r"^hf://no/body could not be fetched \(no such repository\)"
    ):
        beit.load("hf://no/body")
    with pytest.raises(UserError, match="leave @v1"):
        beit.push(run, "hf://me/colours@v1", licence="mit")
    with pytest.raises(UserError, match="--licence apache-2.0"):
        beit.push(run, tmp_path / "out")
    with pytest.raises(UserError, match="no name of a licence"):
        beit.push(run, tmp_path / "out", licence="mit\nlicense: none")
    with pytest.raises(UserError, match="there already"):
        beit.push(run, run, licence="mit")
    with pytest.raises(UserError, match="no finished model"):
        beit.push(tmp_path, tmp_path / "out", licence="mit")
    assert not (tmp_path / "out").exists()

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("401 Unauthorized")

    monkeypatch.setattr(fake, "create_repo", refuse)
    with pytest.raises(
        UserError, match=r"could not be written \(401 Unauthorized\).*hf auth login"
    ):
        beit.push(run, "hf://me/colours", licence="mit")


@pytest.mark.parametrize("is_there", [False, True])
def test_a_disk_that_fills_up_leaves_nothing_half_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    out = tmp_path / "out"
    if is_there:
        out.mkdir()
    copy = shutil.copyfile

    def copying(source: Path, target: Path) -> None:
        copy(source, target)
        if target == out / "model.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(target))

    monkeypatch.setattr(shutil, "copyfile", copying)
    with pytest.raises(UserError, match=rf"^{out} cannot be written \(No space left on device\)"):
        beit.push(run, out, licence="mit")
    assert [*tmp_path.iterdir()] == ([out] if is_there else []) and not [*tmp_path.glob("*/*")]
    monkeypatch.undo()
    assert beit.push(run, out, licence="mit")["target"] == str(out)


def test_a_run_whose_name_is_not_utf8_is_published(run: Path, tmp_path: Path) -> None:
    named, out = tmp_path / os.fsdecode(b"r\xff"), tmp_path / os.fsdecode(b"p\xff")
    shutil.copytree(run, named)
    result = json.loads((named / "result.json").read_text())
    result["run"] = named.name  # as a run writes what it was called with
    (named / "result.json").write_text(json.dumps(result))
    assert beit.push(named, out, licence="mit")["target"] == str(out)
    assert json.loads((out / "result.json").read_text(encoding="utf-8"))["run"] == named.name
    assert isinstance(beit.load(out), Classifier)


def test_a_damaged_model_is_not_published(tmp_path: Path, run: Path) -> None:
    shutil.copytree(run / "best", tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    assert load_file(weights)
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        beit.push(tmp_path / "model", tmp_path / "out", licence="mit")


def test_without_a_network_the_cache_is_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = SimpleNamespace(HF_HUB_OFFLINE=False, ENDPOINT="https://hub.invalid")
    monkeypatch.setattr(hub, "require_hub", lambda: SimpleNamespace(constants=constants))
    with hub.impatient():
        assert constants.HF_HUB_OFFLINE is True
    assert constants.HF_HUB_OFFLINE is False
