"""What heads read, and what they do not."""

import pytest
import torch
from torch.nn import functional

from beit.nn.heads import ClassifierHead, MaskedPixelHead, MaskedTokenHead, Pool


def test_masked_heads_normalise_each_token_then_project() -> None:
    for head in (MaskedTokenHead(8, 5), MaskedPixelHead(8, 5)):
        tokens = torch.randn(2, 3, 8) * 10 + 4
        normal = functional.layer_norm(tokens, (8,), eps=1e-6)
        torch.testing.assert_close(head(tokens), normal @ head.output.weight.T)


@pytest.mark.parametrize("pool", ["mean", "special"])
def test_classifier_pools_before_it_normalises(pool: Pool) -> None:
    head = ClassifierHead(8, 5, pool, initial_factor=1.0)
    tokens = torch.randn(2, 4, 8)
    pooled = tokens[:, 1:].mean(1) if pool == "mean" else tokens[:, 0]
    expected = functional.layer_norm(pooled, (8,), eps=1e-6) @ head.output.weight.T
    torch.testing.assert_close(head(tokens), expected)
