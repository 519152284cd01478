"""What the forward pass keeps for the backward pass grows by the same for every picture."""

import torch

from beit.batch import Masks
from beit.nn.encoder import Encoder
from beit.nn.heads import MaskedTokenHead
from beit.nn.masked_image_model import MaskedImageModel
from beit.nn.presets import encoder_config
from beit.objectives.masked import masked_token_loss

PLACES, CODES = 26, 512


def kept(model: MaskedImageModel, pictures: int) -> int:
    """Bytes that autograd keeps of a loss beside the parameters, each memory once."""
    index = torch.arange(PLACES).repeat(pictures, 1)
    grid = torch.zeros(pictures, 64, dtype=torch.bool)
    grid[:, :PLACES] = True
    masks = Masks(grid.view(pictures, 8, 8), index, torch.ones(pictures, PLACES))
    images, targets = torch.zeros(pictures, 3, 64, 64), torch.zeros_like(index)
    found = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        masked_token_loss(model(images, masks), targets, masks.weight)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(storage.nbytes() for place, storage in found.items() if place not in own)


def test_memory_is_linear_in_the_batch() -> None:
    config = encoder_config("tiny", "plus", (64, 64), (8, 8))
    model = MaskedImageModel(Encoder(config), MaskedTokenHead(config.width, CODES))
    two, three, six = (kept(model, pictures) for pictures in (2, 3, 6))
    assert abs(six - three - 3 * (three - two)) < 100  # bytes: what is kept for all together
    assert 2e6 < three - two < 4e6, three - two  # a picture; casts of weights are kept once
