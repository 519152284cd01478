"""Nearest neighbours equal the obvious slow version; features are what they say."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from beit.batch import ImageBatch
from beit.errors import UserError
from beit.evaluation.neighbours import (
    Features,
    mean_pooled_features,
    neighbour_accuracy,
    neighbour_predictions,
    pool,
)
from beit.nn.config import EncoderConfig
from beit.nn.encoder import Encoder


def slow_vote(train: Features, query: Tensor, count: int, temperature: float) -> int:
    """One picture at a time, in plain Python."""
    ranked = []
    for vector, label in zip(train.features, train.labels, strict=True):
        norms = math.sqrt(float(vector @ vector)) * math.sqrt(float(query @ query))
        ranked.append((float(vector @ query) / norms, int(label)))
    ranked.sort(key=lambda pair: -pair[0])
    votes: dict[int, float] = {}
    for similarity, label in ranked[:count]:
        votes[label] = votes.get(label, 0.0) + math.exp(similarity / temperature)
    return max(sorted(votes), key=lambda label: votes[label])


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_equals_the_slow_version_for_every_chunk(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (60,), generator=generator)
    train = Features(torch.randn(60, 7, generator=generator) * 3, labels)
    queries = torch.randn(23, 7, generator=generator)
    for chunk in (4, 23, 100):
        predictions = neighbour_predictions(train, queries, (1, 5, 60), temperature, chunk)
        for count, predicted in predictions.items():
            slow = [slow_vote(train, query, count, temperature) for query in queries]
            assert predicted.tolist() == slow


def test_near_ones_outvote_many_far_ones() -> None:
    train = Features(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([1, 0, 0]))
    query = torch.tensor([[1.0, 0.1]])
    assert neighbour_predictions(train, query, (3,))[3].tolist() == [1]
    assert neighbour_predictions(train, query, (3,), temperature=10.0)[3].tolist() == [0]


def test_accuracy_counts_what_is_right() -> None:
    train = Features(torch.eye(3), torch.tensor([0, 1, 2]))
    test = Features(torch.eye(3) * 5, torch.tensor([0, 1, 0]))
    assert neighbour_accuracy(train, test, (1,)) == {1: pytest.approx(2 / 3)}


def test_too_many_neighbours_are_refused_by_number() -> None:
    train = Features(torch.eye(3), torch.arange(3))
    with pytest.raises(UserError, match="200 neighbours .* among 3"):
        neighbour_predictions(train, torch.eye(3), (1, 200))


def _encoder() -> Encoder:
    torch.manual_seed(0)
    config = EncoderConfig(
        image_size=(8, 12), patch_size=(4, 4), width=16, depth=3, heads=2, drop_path=0.5
    )
    return Encoder(config)


def _batches(images: Tensor, labels: Tensor | None) -> Iterator[ImageBatch]:
    for start in range(0, len(images), 2):
        part = slice(start, start + 2)
        yield ImageBatch(
            index=torch.arange(len(images))[part],
            epoch=torch.zeros(len(images[part]), dtype=torch.int64),
            patch_view=images[part],
            label=None if labels is None else labels[part],
        )


def test_features_are_the_mean_of_normalised_patches_of_each_layer() -> None:
    encoder = _encoder().train()
    images, labels = torch.randn(5, 3, 8, 12), torch.tensor([3, 0, 1, 2, 1])
    found = mean_pooled_features(encoder, _batches(images, labels), torch.device("cpu"), (2, 0))
    assert encoder.training, "the mode is put back"
    encoder.eval()
    for layer in (0, 2):
        tokens = encoder(images, layers=[layer]).layers[0].detach()[:, 1:]
        centred = tokens - tokens.mean(-1, keepdim=True)
        normalised = centred / (tokens.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        torch.testing.assert_close(found[layer].features, normalised.mean(dim=1))
        assert found[layer].labels.tolist() == labels.tolist()
    assert list(found) == [2, 0]


def test_the_special_token_is_left_out() -> None:
    tokens = torch.randn(2, 5, 8)
    changed = tokens.clone()
    changed[:, 0] += 100
    torch.testing.assert_close(pool(tokens), pool(changed))


@pytest.mark.parametrize("labels", [None, torch.tensor([0, -1])])
def test_pictures_without_labels_are_refused(labels: Tensor | None) -> None:
    batches = _batches(torch.randn(2, 3, 8, 12), labels)
    with pytest.raises(UserError, match="label"):
        mean_pooled_features(_encoder(), batches, torch.device("cpu"), [0])


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(UserError, match="no picture"):
        mean_pooled_features(_encoder(), iter(()), torch.device("cpu"), [0])
