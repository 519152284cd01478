import subprocess
import sys
from pathlib import Path

import pytest
import torch

import beit
from beit.errors import UserError


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = "import sys, beit; assert not {'torch', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", beit.__all__)
def test_public_names_exist_and_are_documented(name: str) -> None:
    assert getattr(beit, name).__doc__


def test_a_notebook_completes_public_names_and_parts_of_the_package_are_there() -> None:
    program = """
import sys, beit
assert set(beit.__all__) <= set(dir(beit)) and "torch" not in sys.modules
assert beit.masking.MASKERS and beit.errors.UserError
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_version_is_that_of_the_package() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'version = "{beit.__version__}"' in text


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="pretrian"):
        beit.pretrian  # noqa: B018


def test_an_encoder_from_the_api_encodes() -> None:
    encoder = beit.encoder("digits", "plus", (16, 32), (4, 8))
    assert encoder(torch.zeros(2, 3, 16, 32)).tokens.shape == (2, 1 + 4 * 4, 64)


def test_an_encoder_is_square_by_one_number_and_takes_its_other_fields() -> None:
    encoder = beit.encoder("digits", image_size=32, patch_size=8, depth=2, drop_path=0.1)
    assert encoder.config.image_size == (32, 32) and encoder.config.grid == (4, 4)
    assert len(encoder.blocks) == 2 and encoder.config.drop_path == 0.1
    with pytest.raises(UserError, match="dept"):
        beit.encoder("digits", dept=2)


def test_recipes_of_every_task_are_had_by_name() -> None:
    assert beit.recipe("cifar100", task="classify").optim.weight_decay == 0.3
    wanted = beit.recipe("tiny", {"decoder.kind": "upernet"}, task="segment")
    assert wanted.decoder.kind == "upernet"
    with pytest.raises(UserError, match="cifar100 is a recipe of classify"):
        beit.recipe("cifar100")


def test_recipes_change_by_dotted_name() -> None:
    assert beit.recipe("tiny", {"optim.lr": 3e-4}).optim.lr == 3e-4
    with pytest.raises(UserError, match="optim.lr"):
        beit.recipe("tiny", {"optim.lrr": 3e-4})


def test_a_group_keeps_what_is_not_said_of_it() -> None:
    grouped = {"encoder": {"depth": 3}, "tokenizer": {"optim": {"steps": 7}, "name": "mine"}}
    dotted = {"encoder.depth": 3, "tokenizer.optim.steps": 7, "tokenizer.name": "mine"}
    assert beit.recipe("tiny", grouped) == beit.recipe("tiny", dotted)
    with pytest.raises(UserError, match="--encoder.dept; did you mean --encoder.depth"):
        beit.recipe("tiny", {"encoder": {"dept": 3}})
    with pytest.raises(UserError, match="encoder cannot be 3"):
        beit.recipe("tiny", {"encoder": 3})
