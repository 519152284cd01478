"""Looking before running: what a recipe is and costs, what a data source holds."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from beit.data.packed import Split
from beit.errors import UserError
from beit.recipes.models import PretrainRecipe
from beit.recipes.named import describe, pretrain_recipe
from beit.recipes.overrides import apply_overrides, dotted_names


def show_recipe(name: str, overrides: Sequence[str], *, quiet: bool = False) -> dict[str, Any]:
    """Resolve a recipe and count its parameters and work; print it unless `quiet`."""
    recipe = apply_overrides(pretrain_recipe(name), overrides, ("--json",))
    result = {
        "name": recipe.name,
        "description": describe(name),
        "recipe": recipe.model_dump(mode="json"),
        **counted(recipe),
    }
    if not quiet:
        _print_recipe(recipe, result)
    return result


def counted(recipe: PretrainRecipe) -> dict[str, Any]:
    """Parameters, and GFLOP a picture (1 multiply-add = 2 FLOP), counted from the architecture."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from beit.nn.counting import count_parameters, count_work
    from beit.recipes.build import encoder_config_of, mask_plan, pretrain_task, tokenizer_config
    from beit.tokenizer.dvae import DiscreteVAE

    encoder, tokenizer = encoder_config_of(recipe.encoder), tokenizer_config(recipe.tokenizer.model)
    with torch.device("meta"):
        vae = DiscreteVAE(tokenizer)
        model = pretrain_task(recipe, vae).model
    places = mask_plan(recipe).capacity
    work = count_work(encoder, places, model.head.output.out_features)
    view = [side * tokenizer.stride for side in encoder.grid]
    with FlopCounterMode(display=False) as counter:
        vae.logits(torch.empty(1, 3, *view, device="meta"))
    live = counter.get_total_flops()
    return {
        "parameters": count_parameters(model),
        "tokenizer_parameters": count_parameters(vae),
        "resolved_encoder": asdict(encoder),
        "resolved_tokenizer": tokenizer.to_dict(),
        "gflop_per_picture": {
            "forward": round(work.forward / 1e9, 4),
            "forward_and_backward": round(work.training / 1e9, 4),
            "tokenizer": round(live / 1e9, 4),
            "step": round((work.training + live) / 1e9, 4),
        },
    }


def _print_recipe(recipe: PretrainRecipe, result: dict[str, Any]) -> None:
    print(f"{recipe.name}: {result['description']}\n")
    names = list(dotted_names(recipe))
    width = max(len(name) for name, _, _ in names)
    for name, value, description in names:
        print(f"  --{name:{width}}  {json.dumps(value):>14}  {description}")
    work = result["gflop_per_picture"]
    print(f"\n  parameters       {result['parameters']:>14,}  (model without tokenizer)")
    print(f"  tokenizer        {result['tokenizer_parameters']:>14,}  (encoder and decoder)")
    print(
        f"  GFLOP a picture  {work['step']:>14.3f}  (forward {work['forward']:.3f}, with backward"
    )
    print(f"  {'':32}  {work['forward_and_backward']:.3f}, tokenizer {work['tokenizer']:.3f})")


def data_info(spec: str, split: Split) -> dict[str, Any]:
    """Count pictures, classes and sizes, and print what was found."""
    from beit.data.check import info
    from beit.data.sources import open_source

    found = info(open_source(spec, split))
    print(f"{found.name}: {found.pictures:,} pictures")
    for name, pictures in found.classes.items():
        print(f"  {pictures:8,}  {name}")
    if found.unlabelled:
        print(f"  {found.unlabelled:8,}  without a class")
    for side in ("height", "width"):
        least, median, most = getattr(found, side)
        print(f"{side} of {found.sampled} pictures: {least} to {most} pixels, median {median}")
    if found.bad_in_sample:
        print(f"{found.bad_in_sample} of them cannot be read; `beit data check` lists all such")
    print(f"fingerprint {found.fingerprint}")
    return asdict(found)


def check_data(spec: str, split: Split, workers: int | None) -> dict[str, Any]:
    """Read every picture and print the bad ones, with path and reason."""
    from beit.data.check import check
    from beit.data.sources import open_source

    if workers is not None and workers < 0:
        raise UserError(f"--workers {workers}: there cannot be fewer than 0 loader processes")
    report = check(open_source(spec, split), workers or 0)
    for bad in report.bad:
        print(f"{bad.path}: {bad.reason}")
    print(f"{report.name}: {report.pictures} pictures, {len(report.bad)} of them unreadable")
    return asdict(report)
