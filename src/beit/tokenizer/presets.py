"""The tokenizers that have a name.

The values of `tiny` were found by experiment on 7,000 photographs at 64 px, 800 steps of 64 (the
comparison stands in the docs). What counted most, in order: the decoder reads the head's own codes
("shared"), a Gaussian likelihood with a learned variance under the plain bound (KL weight 1), and
a rate of 3e-3 with Adam's beta2 at 0.99. The other sizes take the same values.
"""

from dataclasses import replace

from beit.tokenizer.config import DiscreteVAEConfig

_TINY = DiscreteVAEConfig(image_size=(64, 64), vocabulary=512)  # 8x8 grid
_BASE = DiscreteVAEConfig(  # the paper's grid and vocabulary: 112 px, 14x14, 8192 codes
    image_size=(112, 112),
    vocabulary=8192,
    encoder_widths=(192, 384, 768),
    encoder_blocks=(2, 2, 4),
    decoder_widths=(768, 384, 192),
    decoder_blocks=(4, 2, 2),
    stem_kernel=8,
    stem_stride=2,
    embedding_width=256,
)

PRESETS: dict[str, DiscreteVAEConfig] = {
    "digits": DiscreteVAEConfig(  # 8x8 scans enlarged to 16x16: a 4x4 grid, a code for 2x2 dots
        image_size=(16, 16),
        vocabulary=64,
        encoder_widths=(64,),
        encoder_blocks=(2,),
        decoder_widths=(64,),
        decoder_blocks=(2,),
        code_width=16,
        embedding_width=64,
    ),
    "tiny": _TINY,
    "small": replace(_TINY, image_size=(80, 80), vocabulary=1024),  # 10x10 grid
    "base": _BASE,
    "large": _BASE,
}
