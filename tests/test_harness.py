"""What the benchmarks measure with."""

import importlib.util
import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from engine.imagined_cuda import imagined_cuda

BENCHMARKS = str(Path(__file__).resolve().parents[1] / "benchmarks")
if BENCHMARKS not in sys.path:  # scripts, not a package
    sys.path.append(BENCHMARKS)

import attention  # noqa: E402  # they can only be found from here on
import harness  # noqa: E402
import peers  # noqa: E402
import profile_step  # noqa: E402
import setting  # noqa: E402
import step  # noqa: E402


@pytest.mark.parametrize(("device", "sides"), [("cpu", 2048), ("cuda", 8192)])
def test_the_peak_is_that_of_large_matrices(
    device: str, sides: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Drawn(Exception):
        pass

    def draw(*size: int, device: torch.device) -> None:
        raise Drawn(size)

    monkeypatch.setattr(torch, "randn", draw)
    with pytest.raises(Drawn) as found:
        harness.matrix_peak(torch.device(device), torch.float32)
    assert found.value.args[0] == (sides, sides)


@pytest.mark.parametrize(
    ("words", "precision", "name"),
    [
        ("--device cpu", "bfloat16", "cpu"),
        ("--device cpu --batch 24", "bfloat16", "cpu-24"),
        ("--device cpu", "float32", "cpu-float32"),
        ("--device cuda", "bfloat16", "cuda"),
        ("--device cuda --batch 256 --eager", "bfloat16", "cuda-eager"),
        ("--device cuda --sizes large --batch 64", "bfloat16", "cuda-large-64"),
        ("--device cuda --pixels 384", "bfloat16", "cuda-384px"),
    ],
)
def test_what_is_not_as_usual_has_a_record_of_its_own(
    words: str, precision: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of another size, batch or way would else replace what the documents are made from."""
    monkeypatch.setattr(setting, "choose_device", torch.device)
    monkeypatch.setattr(setting, "choose_precision", lambda *given: precision)
    monkeypatch.setattr(setting, "is_hopper", lambda device: False)
    options = setting.with_settings("imagined").parse_args(words.split())
    assert [found.where for found in setting.settings_of(options)] == [name]


@pytest.mark.parametrize(
    ("hopper", "why", "words", "refused"),
    [
        (True, "", "", False),
        (True, "results are 2.0 apart", "", True),
        (True, "results are 2.0 apart", "--any-attention", False),
        (False, "the card is no Hopper", "", False),
    ],
)
def test_a_hopper_without_our_kernels_is_not_timed_unless_told(
    hopper: bool, why: str, words: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setting, "choose_device", torch.device)
    monkeypatch.setattr(setting, "choose_precision", lambda *given: "bfloat16")
    monkeypatch.setattr(setting, "is_hopper", lambda device: hopper)
    monkeypatch.setattr(setting, "why_not_for", lambda projected: why)
    options = setting.with_settings("imagined").parse_args(["--device", "cuda", *words.split()])
    with imagined_cuda(monkeypatch):
        if refused:
            with pytest.raises(SystemExit, match=r"base .*2\.0 apart.*--any-attention"):
                setting.settings_of(options)
        else:
            (found,) = setting.settings_of(options)
            assert why in found.attention and (found.attention == "our kernels") is not bool(why)


class Card:
    """CUDA's counters of memory for something that a test allocates."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held = self.most = 0
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: self.held)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.most)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: self.take(0))

    def take(self, count: int) -> None:
        """Allocate bytes; the peak is counted from here where there are none."""
        self.held += count
        self.most = max(self.most, self.held) if count else self.held


def test_memory_is_what_a_step_takes_when_it_is_not_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card, calls = Card(monkeypatch), 0
    card.take(7)  # of other sides

    def once() -> None:
        nonlocal calls
        calls += 1
        taken = 1000 if calls == 1 else 50  # the first one compiles
        card.take(100 if calls == 1 else 0)  # and makes the optimiser's state
        card.take(taken)
        card.take(-taken)

    assert harness.memory_of(once, torch.device("cuda")) == (107, 157)
    assert harness.memory_of(once, torch.device("cpu")) == (None, None)


def test_a_side_that_raises_is_noted_and_the_others_are_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step, "matrix_peak", lambda *given: 1e9)
    made: list[str] = []

    def side(name: str) -> step.Side:
        def call() -> None:
            if name == "theirs, compiled":
                raise torch.OutOfMemoryError("no room\nfor this")

        return lambda: made.append(name) or call  # type: ignore[func-returns-value]

    names = ("theirs", "theirs, compiled", "ours", "ours, compiled")
    pairs = {f"{name} / ours": (name, "ours") for name in names[:2]}
    here = setting.Setting("base", 1, 2, harness.CPU, "float32", 224)
    flops = dict.fromkeys(names, 1)
    row = step.measured({name: side(name) for name in names}, pairs, flops, here)
    assert row["failed"] == {"theirs, compiled": "OutOfMemoryError: no room"}
    assert "no room" in capsys.readouterr().err
    assert set(row["sides"]) == {"theirs", "ours", "ours, compiled"}
    assert set(row["ratios"]) == {"theirs / ours"}
    made.clear()
    here = here._replace(eager=True)
    step.measured({name: side(name) for name in names}, pairs, flops, here)
    assert made == ["theirs", "ours"]  # and no others


@pytest.mark.parametrize(("fault", "found"), [(1.0, False), (1.1, True)])
def test_a_wrong_kernel_of_half_precision_is_found(fault: float, found: bool) -> None:
    """It is in no comparison in float32."""
    torch.manual_seed(0)
    model, given = torch.nn.Linear(64, 8), torch.randn(16, 64)

    def loss() -> torch.Tensor:
        values = model(given)
        if values.dtype == torch.bfloat16:
            values = values + (fault - 1) * (values - values.detach())  # in the gradient alone
        loss: torch.Tensor = values.float().square().mean()
        return loss

    if found:
        with pytest.raises(AssertionError):
            peers.difference_in_half(model, loss, harness.CPU)
    else:
        assert peers.difference_in_half(model, loss, harness.CPU)["gradient, relative"] > 0


def test_few_of_many_pictures_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 a large model's gradients of a whole batch would not fit."""
    monkeypatch.setattr(step, "MOST_COMPARED", 2)
    here = setting.Setting("digits", 3, 1, harness.CPU, "float32", 32)
    masked, seen = step._Masked(here), []
    for module in (masked.model, masked.reference, masked.hub):
        module.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    in_float32, in_half = masked.apart(("reference, live", "transformers"))
    assert seen == [2] * 6 and set(in_float32) == {"reference", "transformers"}
    assert 1e-5 < in_half["gradient, relative"] < 3e-2


def test_the_reader_that_is_timed_has_read_nothing_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for all places before, it would be compiled for any shape in the timed step."""
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    here = setting.Setting("digits", 2, 1, harness.CPU, "bfloat16", 32)
    monkeypatch.setattr(setting.Setting, "compiles", True)
    masked = step._Masked(here)
    assert masked.equal_codes(("ours, live",))["ours in half precision"] > 0.9
    assert not compiled
    step.fast_tokens(masked.vae, here)
    assert compiled


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("_forward", "attention"),
        ("_of_keys_and_values", "attention"),
        ("_of_queries", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "attention"),
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopA_bias_TNT", "linear layers' products"),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16>", "linear layers' products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "linear layers' products"),
        ("sm90_xmma_fprop_implicit_gemm_f16f16_f16f32", "convolutions of the tokenizer"),
        ("cutlass_tensorop_f16_s16816fprop_optimized_f16", "convolutions of the tokenizer"),
        ("triton_per_fused_native_layer_norm_convolution_3", "fused by torch's compiler"),
        ("void at::native::(anonymous namespace)::nll_loss_forward_reduce_cuda_kernel_2d", "other"),
        ("Memcpy DtoD (Device -> Device)", "copies and casts"),
        ("at::native::(anonymous namespace)::multi_tensor_apply_kernel", "AdamW and clipping"),
        ("aten::native_layer_norm", "LayerNorm"),
        ("aten::_foreach_norm", "AdamW and clipping"),
    ],
)
def test_what_a_kernel_belongs_to(kernel: str, kind: str) -> None:
    assert profile_step.kind_of(kernel) == kind


def test_a_gpus_time_is_counted_once() -> None:
    """The profiler tells of it three times: at operations, kernels and annotations."""
    cpu, cuda = DeviceType.CPU, DeviceType.CUDA
    rows = [
        ("aten::addmm", cpu, False, 9),
        ("nvjet_tst", cuda, False, 7),
        ("Memset (Device)", cuda, False, 2),
        ("Optimizer.step#AdamW.step", cuda, True, 9),
    ]
    names = "key", "device_type", "is_user_annotation", "self_device_time_total"
    events = [
        SimpleNamespace(**dict(zip(names, row, strict=True)), self_cpu_time_total=1) for row in rows
    ]
    times = profile_step.by_kind(events, torch.device("cuda"))
    assert times == {"linear layers' products": 7, "sums, biases and residuals": 2}
    assert sum(profile_step.by_kind(events[:1], harness.CPU).values()) == 1


def test_what_was_timed_before_a_card_goes_is_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def rows(*given: object) -> Iterator[dict[str, str]]:
        yield {"FORWARD": "timed"}
        raise KeyboardInterrupt

    monkeypatch.setattr(attention, "_with_blocks", rows)
    words = ["--blocks", "--tokens", "5", "--in-all", "5", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["attention.py", *words])
    with pytest.raises(KeyboardInterrupt):
        attention.main()
    (record,) = tmp_path.glob("attention-blocks-*.json")
    assert json.loads(record.read_text())["rows"] == [{"FORWARD": "timed"}]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton on this platform")
def test_blocks_are_told_of_after_each_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beit.nn.fused_attention.why_not_for", lambda projected: "")
    monkeypatch.setattr(attention, "_assert_equal", lambda *given: {})
    monkeypatch.setattr(attention, "_timed", lambda _, calls, device: dict.fromkeys(calls, [1.0]))
    rows = attention._with_blocks(Namespace(), [torch.zeros(1, 5, 3, 1, 16)])
    kernels = [{*row} - {"batch", "tokens", "heads", "features"} for row in rows]
    names = ["FORWARD", "OF_KEYS_AND_VALUES", "OF_QUERIES"]
    assert kernels == [{*names[:1]}, {*names[:2]}, {*names}]
