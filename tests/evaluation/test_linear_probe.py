"""Probes after every block: what is learned, what decides, and what must not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from beit.errors import UserError
from beit.evaluation.linear_probe import (
    METHODS,
    PENALTIES,
    LayerFeatures,
    LayerScore,
    LinearSettings,
    MethodResult,
    hold_out,
    probe_layers,
    standardisation,
    train_heads,
)
from beit.randomness import sample_generator, step_seed
from oracles.oracle_probe import slow_heads

CPU = torch.device("cpu")
QUICKLY = LinearSettings(epochs=20, rates=(3e-2,), batch=16)
ALL = tuple(METHODS)
# How far apart the classes lie after each of four blocks: best in the middle.
APART = (0.0, 0.8, 5.0, 0.5)


def _pictures(per_class: int, seed: int, apart: tuple[float, ...] = APART) -> LayerFeatures:
    """Three classes round three centres, in a shuffled order, off centre and out of scale."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(3, 8))
    labels = generator.permutation(np.repeat(np.arange(3), per_class))
    noise = generator.normal(size=(len(apart), len(labels), 8))
    spread = np.array(apart)[:, None, None] * centres[labels]
    scale, shift = np.geomspace(0.01, 3, 8), np.linspace(-1, 1, 8)
    return LayerFeatures(((noise + spread) * scale + shift).astype(np.float16), labels)


@pytest.mark.parametrize("method", ALL)
def test_the_block_that_tells_classes_apart_is_found(method: str) -> None:
    result = probe_layers(
        _pictures(40, 1), _pictures(30, 2), [method], settings=replace(QUICKLY, epochs=40)
    )
    found = result.methods[0]
    assert found.best == 2
    assert found.layers[2].test > 0.9 > 0.55 > found.layers[0].test
    assert (result.train, result.held_out, result.test) == (120, 24, 90)
    assert result.most_frequent == pytest.approx(1 / 3)


@pytest.mark.parametrize("method", ALL)
def test_test_pictures_have_no_say_in_the_choice(method: str) -> None:
    train, test = _pictures(20, 1), _pictures(10, 2)
    upside_down = LayerFeatures(test.features[::-1], test.labels)
    settings = replace(QUICKLY, epochs=5)
    (first,), (second,) = (
        probe_layers(train, pictures, [method], settings=settings).methods
        for pictures in (test, upside_down)
    )
    assert first.best == second.best
    assert [s.held_out for s in first.layers] == [s.held_out for s in second.layers]
    assert [s.penalty for s in first.layers] == [s.penalty for s in second.layers]
    assert [s.test for s in first.layers] != [s.test for s in second.layers]


@pytest.mark.parametrize("method", ALL)
def test_held_out_pictures_are_not_learned_from(method: str) -> None:
    """With labels that mean nothing, pictures that were learned by heart would be named."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(1, 60, 80)).astype(np.float16)
    train = LayerFeatures(features, np.arange(60) % 3)
    settings = replace(QUICKLY, epochs=30)
    score = probe_layers(train, train, [method], settings=settings).methods[0].layers[0]
    assert score.test > 0.85 and score.held_out < 0.6


def test_the_best_block_is_the_held_out_one_and_the_other_is_only_shown() -> None:
    scores = [(0.5, 0.9), (0.7, 0.6), (0.7, 0.8)]
    result = MethodResult("quick", tuple(LayerScore(held_out, test) for held_out, test in scores))
    assert result.best == 1 and result.best_on_test == 0


def test_all_blocks_and_rates_at_once_equal_each_alone() -> None:
    train = _pictures(10, 1)
    rows = np.arange(len(train.labels))
    together = train_heads(train, rows, replace(QUICKLY, rates=(3e-2, 1e-3)), 0, CPU)
    assert not torch.allclose(together[3e-2].weight, together[1e-3].weight, atol=1e-2)
    for rate, heads in together.items():
        for layer in range(train.depth):
            alone = LayerFeatures(train.features[layer : layer + 1], train.labels)
            single = train_heads(alone, rows, replace(QUICKLY, rates=(rate,)), 0, CPU)[rate]
            torch.testing.assert_close(heads.weight[layer], single.weight[0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(heads.bias[layer], single.bias[0], atol=1e-5, rtol=1e-4)


def test_each_block_takes_its_best_rate_on_the_held_out_part() -> None:
    train, test = _pictures(15, 1), _pictures(10, 2)
    settings = replace(QUICKLY, epochs=4, rates=(1e-5, 1e-2, 1.0))
    layers = probe_layers(train, test, ["paper"], settings=settings).methods[0].layers
    alone = {
        rate: probe_layers(train, test, ["paper"], settings=replace(settings, rates=(rate,)))
        for rate in settings.rates
    }
    for number, score in enumerate(layers):
        accuracies = {rate: one.methods[0].layers[number] for rate, one in alone.items()}
        assert score.rate is not None
        assert score.held_out == max(one.held_out for one in accuracies.values())
        assert score == accuracies[score.rate]
    assert {score.rate for score in layers} - {1e-5}


def test_training_equals_the_reference_written_out() -> None:
    train, settings = _pictures(7, 1), LinearSettings(epochs=3, rates=(0.05,), batch=8)
    rows = np.arange(1, len(train.labels))
    heads = train_heads(train, rows, settings, 5, CPU)[0.05]
    features = []
    for layer in range(train.depth):
        values = train.layer(layer, rows)
        scaled = (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-6)
        features.append(torch.from_numpy(scaled))
    generator = torch.Generator().manual_seed(step_seed(5, 0, stream="linear-probe"))
    orders = [
        (sample_generator(5, epoch, 0, "linear-probe-order").permutation(rows) - 1).tolist()
        for epoch in range(3)
    ]
    slow = slow_heads(
        features,
        torch.from_numpy(train.labels[rows]),
        0.01 * torch.randn(8, 3, generator=generator),
        orders,
        settings.batch,
        0.05 * settings.batch / 256,
        settings.weight_decay,
    )
    for layer, linear in enumerate(slow):
        torch.testing.assert_close(heads.weight[layer], linear.weight.T, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(heads.bias[layer, 0], linear.bias, atol=1e-5, rtol=1e-4)


def test_same_seed_same_result_and_the_default_generator_is_left_alone() -> None:
    pictures = _pictures(12, 1), _pictures(8, 2)
    settings = replace(QUICKLY, epochs=2)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = probe_layers(*pictures, ALL, settings=settings, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert probe_layers(*pictures, ALL, settings=settings, seed=1) == first


def test_scale_and_shift_of_the_features_do_not_matter_to_linear_models() -> None:
    train, test = _pictures(15, 1), _pictures(10, 2)
    moved = [LayerFeatures((p.features * 4 + 2), p.labels) for p in (train, test)]
    settings = replace(QUICKLY, epochs=5)
    plain = probe_layers(train, test, ["paper", "quick"], settings=settings)
    other = probe_layers(moved[0], moved[1], ["paper", "quick"], settings=settings)
    for one, two in zip(plain.methods, other.methods, strict=True):
        for left, right in zip(one.layers, two.layers, strict=True):
            assert left.test == pytest.approx(right.test, abs=0.1)  # half precision


def test_standardised_features_have_mean_0_and_deviation_1() -> None:
    values = _pictures(30, 1).layer(2, np.arange(90))
    values[:, 3] = 0.25  # a feature that never varies must not blow up
    centre, scale = standardisation(values)
    scaled = (values - centre) * scale
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(np.delete(scaled.std(0), 3), 1, atol=0.01)
    assert np.abs(scaled[:, 3]).max() == 0


def test_a_part_of_each_class_is_held_out_and_never_all_of_it() -> None:
    labels = np.array([0] * 10 + [1] * 4 + [2] * 2 + [3])
    kept, held = hold_out(labels, seed=0)
    assert sorted([*kept, *held]) == list(range(17))
    assert np.bincount(labels[held]).tolist() == [2, 1, 1]
    assert np.bincount(labels[kept]).tolist() == [8, 3, 1, 1]
    again = hold_out(labels, seed=0)
    assert np.array_equal(again[1], held)
    assert any(not np.array_equal(hold_out(labels, seed)[1], held) for seed in range(1, 5))


def test_the_penalty_is_the_best_on_the_held_out_part() -> None:
    """Each block by itself, in scikit-learn's own words."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    train, test = (_with_a_hidden_difference(_pictures(40, seed)) for seed in (1, 2))
    kept, held = hold_out(train.labels, seed=0)

    def accuracy(layer: int, rows: Any, pictures: LayerFeatures, where: Any, c: float) -> float:
        scaler = StandardScaler().fit(train.layer(layer, rows))
        model = LogisticRegression(C=c, max_iter=5_000)
        model.fit(scaler.transform(train.layer(layer, rows)), train.labels[rows])
        asked = scaler.transform(pictures.layer(layer, where))
        return float(model.score(asked, pictures.labels[where]))

    layers = probe_layers(train, test, ["quick"]).methods[0].layers
    chosen = set()
    for layer, score in enumerate(layers):
        accuracies = [accuracy(layer, kept, train, held, c) for c in PENALTIES]
        assert score.penalty is not None
        one = 1.01 / len(held)  # picture: both stop within a tolerance
        assert score.held_out == pytest.approx(max(accuracies), abs=one)
        assert accuracies[PENALTIES.index(score.penalty)] >= max(accuracies) - one
        everything = np.arange(len(train.labels)), test, np.arange(len(test.labels))
        assert score.test == pytest.approx(accuracy(layer, *everything, score.penalty), abs=0.02)
        chosen.add(score.penalty)
    assert len(chosen) > 1, "these blocks cannot tell penalties apart"


def _with_a_hidden_difference(pictures: LayerFeatures) -> LayerFeatures:
    """Block 0 tells classes apart by a small difference of two features: weak penalties see it."""
    features = pictures.features.copy()
    features[0, :, 0] = np.random.default_rng(int(features.size)).normal(size=len(pictures.labels))
    features[0, :, 1] = features[0, :, 0] + 0.2 * (pictures.labels - 1)
    return LayerFeatures(features, pictures.labels)


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (_pictures(1, 1), _pictures(1, 2), "two pictures of a class"),
        (_pictures(4, 1), LayerFeatures(np.zeros((4, 0, 8), np.float16), np.zeros(0, int)), "test"),
        (LayerFeatures(np.zeros((4, 5, 8), np.float16), np.ones(5, int)), _pictures(1, 2), "two"),
    ],
)
def test_what_cannot_be_probed_is_refused(train: Any, test: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        probe_layers(train, test, ["quick"])


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UserError, match="epochs=0"):
        LinearSettings(epochs=0)
    with pytest.raises(UserError, match="rates"):
        LinearSettings(rates=(1e-3, 0.0))
