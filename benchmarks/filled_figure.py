"""What a pre-trained model fills in, on two photos that it has not seen: docs/filled.png.

The photos come with scikit-learn (china.jpg by danielbuechele, flower.jpg by vultilion, CC BY 2.0).
"""

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from beit.commands.assembly.run_files import RunFiles
from beit.commands.assembly.saved_models import load_masked_image_model
from beit.commands.assembly.tokenizers import load_tokenizer
from beit.commands.looking.figures import Pictures, masked_figure
from beit.data.sources.handed import handed
from beit.recipes.models import PretrainRecipe

PAGE = Path(__file__).parents[1] / "docs" / "filled.png"
SIDE = 256  # pixels that a crop is brought to before the recipe's own resizing
CROPS = [  # photo, top, left, side
    (0, 0, 0, 400),
    (0, 127, 240, 300),
    (0, 0, 60, 240),
    (1, 70, 150, 300),
    (1, 0, 100, 427),
    (1, 200, 200, 227),
]


def main(run: Path, page: Path = PAGE) -> None:
    """Mask, predict and decode the crops as the report of the run does with its own pictures."""
    files = RunFiles(run)
    recipe = files.recipe
    assert isinstance(recipe, PretrainRecipe), f"{run} is not a pre-training"
    model, tokenizer = load_masked_image_model(run), load_tokenizer(run / "tokenizer")
    pictures = Pictures(handed(crops()).train, torch.device("cpu"))
    page.write_bytes(masked_figure(recipe, model, tokenizer, pictures).png)


def crops() -> NDArray[np.uint8]:
    """Squares of the two photos, (N, H, W, 3)."""
    photos = load_sample_images().images
    squares = [
        Image.fromarray(photos[number][top : top + side, left : left + side])
        for number, top, left, side in CROPS
    ]
    return np.stack([np.asarray(square.resize((SIDE, SIDE))) for square in squares])


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
