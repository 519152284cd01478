"""Commands that use a trained model."""

import argparse
import sys
from pathlib import Path
from typing import Any

from beit.cli.arguments import PAIRS, SOURCES, Parser, add_command, unexpected
from beit.cli.devices import add_devices, device_of, launched
from beit.errors import UserError

MODELS = (
    "a run of `beit classify` or `beit segment` (or its best/), a model folder, or another "
    "program's checkpoint"
)


def add(commands: Any) -> None:
    """Add `evaluate`, `predict`, `probe`, `convert` and `push`."""
    _evaluate(commands)
    _predict(commands)
    _probe(commands)
    _convert(commands)
    _push(commands)


def _evaluate(commands: Any) -> None:
    text = "Of a pre-training: --masking.kind, .ratio and the others measure it under other masks."
    evaluate = add_command(
        commands, "evaluate", "measure a trained model", _run_evaluate, epilog=text
    )
    evaluate.set_defaults(takes_overrides=True)
    evaluate.add_argument(
        "model", metavar="CKPT", help=f"{MODELS}; or a run of `beit pretrain`: how well it predicts"
    )
    evaluate.add_argument(
        "--data", metavar="SRC", required=True, help=f"{SOURCES}; for a segmenter, {PAIRS}"
    )
    evaluate.add_argument(
        "--split", default="val", help="val (the default), train or all; with masks also test"
    )
    evaluate.add_argument("--out", metavar="FILE", help="write the whole result as JSON")
    _add_dense(evaluate)
    add_devices(evaluate)


def _predict(commands: Any) -> None:
    text = "predict labels with probabilities, or masks"
    predict = add_command(commands, "predict", text, _run_predict)
    predict.add_argument("model", metavar="CKPT", help=MODELS)
    predict.add_argument(
        "pictures", metavar="PICTURES", nargs="+", help="files, folders or glob patterns"
    )
    predict.add_argument("--top", type=int, default=1, metavar="N", help="classes per picture (1)")
    predict.add_argument("--lines", action="store_true", help="JSON lines instead of a table")
    predict.add_argument(
        "--out", metavar="FOLDER", help="where a segmenter writes masks and overlays"
    )
    _add_dense(predict)
    predict.add_argument("--device", help="cpu, cuda or cuda:N; by default the best available")


def _probe(commands: Any) -> None:
    text = "measure frozen features after every block: linear probes and nearest neighbours"
    probe = add_command(commands, "probe", text, _run_probe)
    probe.add_argument("model", metavar="CKPT", help="any model with an encoder")
    probe.add_argument("--data", metavar="SRC", required=True, help=SOURCES)
    probe.add_argument(
        "--out", metavar="FOLDER", help="where to keep the table, the curve and the features"
    )
    ways = ("quick", "paper", "neighbours", "all")
    probe.add_argument(
        "--method",
        choices=ways,
        default="quick",
        help="quick (the default): logistic regression; paper: a trained head per block; "
        "neighbours; all",
    )
    probe.add_argument(
        "--labels",
        default="all",
        help="how many to learn from: all, 10%% of each class, or 50/class",
    )
    probe.add_argument("--seed", type=int, default=0, help="random seed (0)")
    probe.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="the model's own by default"
    )
    probe.add_argument("--device", help="cpu, cuda or cuda:N; by default the best available")


def _convert(commands: Any) -> None:
    text = "convert weights from and to other programs' formats"
    convert = add_command(commands, "convert", text, _run_convert)
    convert.add_argument(
        "source",
        metavar="IN",
        help="a folder, .pth, .safetensors, timm:NAME, hf://owner/name, or DALL-E's encoder.pkl",
    )
    convert.add_argument("target", metavar="OUT", help="folder or file to create")
    formats = ("beit", "reference", "transformers", "timm", "onnx", "torch-export")
    convert.add_argument("--to", required=True, choices=formats, help="the format to write")
    convert.add_argument(
        "--image-size", type=int, nargs=2, metavar=("H", "W"), help="if it is not square"
    )
    convert.add_argument(
        "--heads", type=int, metavar="N", help="attention heads, if IN does not say"
    )
    convert.add_argument(
        "--ema", action="store_true", help="take the moving average of the weights"
    )
    convert.add_argument("--encoder-only", action="store_true", help="leave the head out")
    convert.add_argument(
        "--normalisation",
        choices=("imagenet", "half"),
        help="how the model's inputs were normalised, if IN does not say: ImageNet's mean and "
        "deviation, or 0.5 for both",
    )
    convert.add_argument(
        "--data", metavar="SRC", default="digits", help="pictures to test a graph on (digits)"
    )


def _push(commands: Any) -> None:
    text = "publish a trained model, with a card made from the run"
    push = add_command(commands, "push", text, _run_push)
    push.add_argument("run_folder", metavar="RUN", help="a finished run, or its best/")
    push.add_argument(
        "target", metavar="TARGET", help="hf://owner/name, or a folder to write the same files to"
    )
    push.add_argument(
        "--licence", metavar="NAME", help="licence of the weights, such as apache-2.0"
    )
    push.add_argument("--public", action="store_true", help="make it public; private by default")
    push.add_argument("--data-name", metavar="TEXT", help="what the card calls the data")
    push.add_argument("--note", default="", metavar="TEXT", help="Markdown to add to the card")


def _add_dense(command: Parser) -> None:
    """Add how a segmenter looks at whole pictures; what is not said is as in its training."""
    group = command.add_argument_group("segmenters", "by default as in the run's own evaluation")
    group.add_argument(
        "--mode", choices=("whole", "slide"), help="the whole picture at once, or window by window"
    )
    group.add_argument(
        "--scales", type=float, nargs="+", metavar="S", help="scales to average over"
    )
    group.add_argument("--flip", action="store_true", help="average with the mirror image")


def _dense(options: argparse.Namespace) -> dict[str, Any]:
    changes: dict[str, Any] = {"mode": options.mode, "flip": options.flip or None}
    changes["scales"] = None if options.scales is None else tuple(options.scales)
    return {name: value for name, value in changes.items() if value is not None}


def _run_evaluate(options: argparse.Namespace) -> dict[str, Any] | None:
    for word in options.overrides:
        if not word.startswith("--masking."):
            raise UserError(unexpected(word, options))
    if launched(options):
        return None
    from beit.commands.using.evaluating import evaluate
    from beit.recipes.overrides import changes_of

    return evaluate(
        options.model,
        options.data,
        split=options.split,
        device=device_of(options),
        out=options.out,
        quiet=options.json,
        dense=_dense(options),
        changes=changes_of(options.overrides),
    )


def _run_predict(options: argparse.Namespace) -> dict[str, Any]:
    from beit.commands.using.predicting import Wishes, predict

    out = None if options.out is None else Path(options.out)
    wishes = Wishes(options.top, options.lines, out, _dense(options), keep=options.json)
    return predict(options.model, options.pictures, wishes, options.device)


def _run_probe(options: argparse.Namespace) -> dict[str, Any]:
    from beit.commands.using.probing import probe

    return probe(
        options.model,
        options.data,
        out=None if options.out is None else Path(options.out),
        method=options.method,
        labels=options.labels,
        seed=options.seed,
        device=options.device,
        image_size=None if options.image_size is None else (options.image_size,) * 2,
        quiet=options.json,
    )


def _run_convert(options: argparse.Namespace) -> dict[str, Any]:
    from beit.commands.sharing.conversion import Options, convert

    size = None if options.image_size is None else (options.image_size[0], options.image_size[1])
    wanted = Options(
        size,
        options.heads,
        options.ema,
        options.encoder_only,
        options.normalisation,
        options.data,
    )
    result = convert(options.source, options.target, options.to, wanted)
    for note in result["notes"]:
        print(f"note: {note}", file=sys.stderr)
    if not options.json:
        print(f"{result['from']} -> {result['to']}: {result['out']}")
    return result


def _run_push(options: argparse.Namespace) -> dict[str, Any]:
    from beit.commands.sharing.publishing import push

    result = push(
        options.run_folder,
        options.target,
        private=not options.public,
        licence=options.licence,
        data=options.data_name,
        note=options.note,
    )
    if not options.json:
        print(f"{options.run_folder} -> {result['target']}: {result['size']}")
    return result
