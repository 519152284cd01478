"""A tokenizer of 11 codes and 16 x 24 pixels, small enough for any test."""

import torch

from beit.tokenizer.config import DiscreteVAEConfig
from beit.tokenizer.dvae import DiscreteVAE

SMALL = DiscreteVAEConfig(
    image_size=(16, 24),
    vocabulary=11,
    encoder_widths=(8, 16),
    encoder_blocks=(0, 1),
    decoder_widths=(16,),
    decoder_blocks=(1,),
    embedding_width=8,
    code_width=6,
    cosine_scale=20.0,
)


def small_tokenizer(config: DiscreteVAEConfig = SMALL) -> DiscreteVAE:
    """The same weights at every call."""
    torch.manual_seed(0)
    return DiscreteVAE(config)
