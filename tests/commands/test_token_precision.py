"""What `tokens.precision auto` becomes, and that it is kept."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from beit.commands.assembly.build import token_reader, tokenizer_config
from beit.commands.assembly.token_precision import FIELD, with_token_precision
from beit.commands.preparing import banking
from beit.recipes.models import PretrainRecipe
from beit.recipes.named import pretrain_recipe
from beit.recipes.overrides import replace
from beit.tokenizer.bank import TokenBank
from beit.tokenizer.dvae import DiscreteVAE
from commands.recipe_runs import beit, photos, pretraining, tokenizing

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def recipe() -> PretrainRecipe:
    found = pretrain_recipe("digits")
    assert found.tokens.precision == "auto"
    return found


def of_a_bank(precision: str) -> TokenBank:
    origin = SimpleNamespace(precision=precision)
    return cast(TokenBank, SimpleNamespace(manifest=SimpleNamespace(origin=origin)))


def test_the_device_decides(recipe: PretrainRecipe) -> None:
    assert with_token_precision(recipe, CPU).tokens.precision == "float32"
    assert with_token_precision(recipe, CUDA).tokens.precision == "float16"


def test_a_bank_decides_before_the_device(recipe: PretrainRecipe) -> None:
    found = with_token_precision(recipe, CUDA, bank=of_a_bank("float32"))
    assert found.tokens.precision == "float32"


@pytest.mark.parametrize("text", ["tokens: {precision: bfloat16}", "tokens: {}", "name: old"])
def test_a_run_decides_before_its_bank(recipe: PretrainRecipe, tmp_path: Path, text: str) -> None:
    """Runs of a time when there was no such field computed in float32."""
    (tmp_path / "recipe.yaml").write_text(text)
    found = with_token_precision(recipe, CUDA, tmp_path, of_a_bank("float16"))
    assert found.tokens.precision == ("bfloat16" if "bfloat16" in text else "float32")


def test_what_was_said_is_kept(recipe: PretrainRecipe, tmp_path: Path) -> None:
    said = replace(recipe, {FIELD: "bfloat16"})
    (tmp_path / "recipe.yaml").write_text("tokens: {precision: float16}")
    assert with_token_precision(said, CUDA, tmp_path, of_a_bank("float16")) == said


def test_the_reader_knows_what_auto_is(recipe: PretrainRecipe) -> None:
    tokenizer = DiscreteVAE(tokenizer_config(recipe.tokenizer.model))
    assert token_reader(recipe, tokenizer).precision == "float32"


def test_half_precision_that_changes_most_codes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, tokenizer = photos(tmp_path, train=6), tmp_path / "tokenizer"
    assert beit(*tokenizing(tokenizer, data)).status == 0
    monkeypatch.setattr(banking, "_TRUSTED", 1.01)
    words: list[Any] = [*pretraining(tmp_path / "run", data), "--tokenizer", tokenizer]
    outcome = beit(*words, "--tokens.precision", "bfloat16")
    assert outcome.status == 2 and "--tokens.precision float32" in outcome.err
    assert not (tmp_path / "run" / "model.safetensors").exists()
