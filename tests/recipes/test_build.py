"""From a recipe's words to what the device gets."""

import pytest
import torch

from beit.engine.distribution import World
from beit.recipes.build import choose_precision, evaluation_workers
from beit.recipes.models import DataRecipe


@pytest.mark.parametrize("native", [True, False])
def test_auto_takes_bfloat16_where_the_card_multiplies_it(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emulated bfloat16, which torch counts as supported unless told otherwise, is slower."""

    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    expected = "bfloat16" if native else "float32"
    assert choose_precision("auto", torch.device("cuda")) == expected
    assert choose_precision("bfloat16", torch.device("cuda")) == "bfloat16"


def test_loader_processes_decode_for_an_evaluation_on_a_gpu_alone() -> None:
    assert evaluation_workers(DataRecipe(workers=3), World(), torch.device("cuda")) == 3
    assert evaluation_workers(DataRecipe(workers=3), World(), torch.device("cpu")) == 0
