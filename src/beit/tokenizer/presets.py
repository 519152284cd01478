"""The tokenizers that have a name, and what was found to train them well."""

from dataclasses import replace

from beit.errors import UserError
from beit.tokenizer.config import DiscreteVAEConfig, dalle_config

PRESETS: dict[str, DiscreteVAEConfig] = {
    "digits": DiscreteVAEConfig(  # 8x8 scans enlarged to 16x16: a code for 2x2 pixels, a 4x4 grid
        image_size=(16, 16),
        vocabulary=32,
        encoder_widths=(64,),
        encoder_blocks=(2,),
        decoder_widths=(64,),
        decoder_blocks=(2,),
        stem_kernel=8,
        stem_stride=4,
        code_width=16,
        embedding_width=64,
    ),
    "tiny": DiscreteVAEConfig(image_size=(64, 64), vocabulary=512),  # 8x8 grid
    "small": DiscreteVAEConfig(image_size=(80, 80), vocabulary=1024),  # 10x10 grid
    "base": replace(dalle_config(), head="cosine", cosine_scale=20.0),  # 112 px, 14x14 grid
    "large": replace(dalle_config(), head="cosine", cosine_scale=20.0),
}


def tokenizer_config(
    name: str, image_size: tuple[int, int] | None = None, vocabulary: int | None = None
) -> DiscreteVAEConfig:
    """A named configuration, for another picture size or vocabulary where given.

    Raises:
        UserError: There is no such name, or the size does not suit its stride.
    """
    if name not in PRESETS:
        raise UserError(f"there is no tokenizer {name!r}: choose one of {', '.join(PRESETS)}.")
    config = PRESETS[name]
    return replace(
        config,
        image_size=image_size or config.image_size,
        vocabulary=config.vocabulary if vocabulary is None else vocabulary,
    )
