from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from beit.batch import ImageBatch
from beit.engine.protocol import StepContext
from beit.engine.step import compile_parts
from beit.errors import UserError
from beit.objectives.evidence_bound import picture_log_density, uniform_divergence
from beit.tasks.tokenize import TokenizeSettings, TokenizeTask
from beit.tokenizer.config import DiscreteVAEConfig, dalle_config
from beit.tokenizer.dvae import DiscreteVAE

CONFIG = DiscreteVAEConfig(
    image_size=(16, 16),
    vocabulary=16,
    encoder_widths=(16, 32),
    encoder_blocks=(0, 1),
    decoder_widths=(32,),
    decoder_blocks=(1,),
    embedding_width=16,
    code_width=8,
)


def build(**changes: Any) -> TokenizeTask:
    torch.manual_seed(0)
    return TokenizeTask(DiscreteVAE(CONFIG), TokenizeSettings(**changes))


def batch_of(images: torch.Tensor) -> ImageBatch:
    index = torch.arange(len(images))
    return ImageBatch(index=index, epoch=torch.zeros_like(index), token_view=images)


def context(step: int, total: int = 100) -> StepContext:
    return StepContext(seed=0, step=step, total_steps=total, rows=range(4))


def test_output_is_the_mean_over_pictures() -> None:
    task = build()
    output = task(batch_of(torch.rand(4, 3, 16, 16)), context(50))
    assert output.loss.shape == () and output.loss.requires_grad
    assert output.weight.item() == 4
    expected = {"mse", "kl", "kl_marginal", "perplexity", "temperature", "log_density"}
    assert set(output.metrics) == expected
    assert all(value.shape == () and not value.requires_grad for value in output.metrics.values())


def test_loss_is_minus_the_weighted_bound_a_pixel_value() -> None:
    task = build(marginal_weight=0.5, kl_weight=2.0)
    images = torch.rand(4, 3, 16, 16)
    torch.manual_seed(3)
    output = task(batch_of(images), context(50))
    torch.manual_seed(3)
    logits = task.model.logits(images)
    noise = -torch.log(-torch.log(torch.rand_like(logits)))
    weights = ((logits + noise) / task.settings.temperature_at(0.5)).softmax(1)
    density = picture_log_density(images, task.model.decode(weights), task.model.log_variance)
    divergence = uniform_divergence(logits)
    # 2 x 2 places, 768 pixel values
    expected = -density.mean() / 768 + 2.0 * 4 * divergence.total / 768
    torch.testing.assert_close(output.loss, expected + 0.5 * divergence.marginal)


def test_noise_comes_from_the_default_generator() -> None:
    task = build()
    batch = batch_of(torch.rand(4, 3, 16, 16))
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(task(batch, context(10)).loss.item())
    assert losses[0] == losses[1] != losses[2]


def test_schedules() -> None:
    settings = TokenizeSettings(
        kl_weight=6.0, kl_warmup=0.1, temperature_hold=0.2, straight_through=0.2
    )
    assert settings.temperature_at(0.2) == 1
    assert settings.temperature_at(1.0) == pytest.approx(1 / 16)
    assert settings.kl_weight_at(0.0) == 0
    assert settings.kl_weight_at(0.1) == pytest.approx(6.0)
    assert not settings.straight_through_at(0.79)
    assert settings.straight_through_at(0.81)
    assert not TokenizeSettings(straight_through=0.0).straight_through_at(0.999)


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"kl_weight": -1.0}, "kl_weight"),
        ({"marginal_weight": float("nan")}, "marginal_weight"),
        ({"final_temperature": 0.0}, "final_temperature"),
        ({"straight_through": 1.5}, "straight_through"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, float], culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        TokenizeSettings(**changes)


def test_undecayed_names_are_the_tasks_own() -> None:
    task = build()
    names = dict(task.named_parameters())
    assert "model.code_vectors" in task.undecayed_parameters()
    assert task.undecayed_parameters() <= names.keys()


def test_extra_marginal_weight_spreads_the_codes() -> None:
    images = torch.rand(8, 3, 1, 1).expand(8, 3, 16, 16).contiguous()
    spread = []
    for weight in (0.0, 3.0):
        task = build(marginal_weight=weight, kl_weight=0.0)
        train(task, images, steps=40)
        spread.append(uniform_divergence(task.model.logits(images)).marginal.item())
    assert spread[1] < spread[0]


def train(task: TokenizeTask, images: torch.Tensor, steps: int) -> list[float]:
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW(task.parameters(), lr=5e-3)
    errors = []
    for step in range(steps):
        output = task(batch_of(images), context(step, steps))
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
        errors.append(output.metrics["mse"].item())
    return errors


def test_learns_flat_colours() -> None:
    torch.manual_seed(1)
    images = torch.rand(12, 3, 1, 1).expand(12, 3, 16, 16).contiguous()
    task = build(marginal_weight=0.1, kl_weight=1.0)
    train(task, images, steps=240)
    hard = (task.model.reconstruct(images) - images).square().mean().item()
    assert hard < 0.25 * images.var().item()


def test_what_is_compiled_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """The discrete VAE itself never is: it has no forward, and compiling it would do nothing."""
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    task = build()
    compile_parts(task)
    called: set[nn.Module] = set()
    for module in compiled:
        module.register_forward_pre_hook(lambda module, _: called.add(module))
    task(batch_of(torch.rand(2, 3, 16, 16)), context(50))
    assert called == {*compiled} >= {task.model.encoder, task.model.decoder}


# torch's compiler asks all that comes in for its gradient.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_encoder_and_decoder_are_a_graph_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """DALL-E's have more kinds of blocks than torch compiles of one function."""
    graphs: list[torch.fx.GraphModule] = []

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    config = replace(
        dalle_config((16, 16), 8), encoder_widths=(4, 8, 16, 32), decoder_widths=(32, 16, 8, 4)
    )
    task = TokenizeTask(DiscreteVAE(config), TokenizeSettings())
    weights, images = torch.rand(2, 8, 2, 2), torch.rand(2, 3, 16, 16)
    expected = task.model.logits(images), task.model.decode(weights)
    original = nn.Module.compile
    torch.compiler.reset()
    monkeypatch.setattr(nn.Module, "compile", lambda module: original(module, backend=counting))
    compile_parts(task)
    found = task.model.logits(images), task.model.decode(weights)
    torch.testing.assert_close(found, expected)
    assert len(graphs) == 2
