"""A batch norm that knows of ranks. Two real ones are in `recipes/test_fine_tuning_ranks.py`."""

import pytest
import torch
from torch import nn

from beit.nn.batch_norm import RankedBatchNorm2d


@pytest.mark.parametrize("training", [True, False])
def test_alone_it_is_torchs(training: bool) -> None:
    ours, theirs = RankedBatchNorm2d(3).train(training), nn.BatchNorm2d(3).train(training)
    features = torch.randn(2, 3, 5, 5)
    assert ours(features).equal(theirs(features))
    for name, value in theirs.state_dict().items():
        assert ours.state_dict()[name].equal(value), name


def test_what_it_does_over_ranks_is_what_torch_does_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A world of one that goes the ranks' way: values, gradients and what is remembered."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    features = 3 + 2 * torch.randn(4, 3, 5, 5)
    found = []
    for norm in (RankedBatchNorm2d(3), nn.BatchNorm2d(3)):
        given = features.clone().requires_grad_()
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([1.0, 2.0, -0.5]))
        over = norm._over_ranks if isinstance(norm, RankedBatchNorm2d) else norm
        out = over(given)
        out.sin().sum().backward()
        assert given.grad is not None and norm.weight.grad is not None
        found.append([out, given.grad, norm.weight.grad, *norm.state_dict().values()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_half_precision_is_computed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded only at the end: a mean of 100 leaves bfloat16 no digits for the differences."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    features = (100 + torch.randn(4, 3, 9, 9)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        over = RankedBatchNorm2d(3)._over_ranks(features)
    assert over.dtype == torch.bfloat16
    expected = nn.BatchNorm2d(3)(features.float())
    torch.testing.assert_close(over.float(), expected, rtol=1e-2, atol=1e-2)
