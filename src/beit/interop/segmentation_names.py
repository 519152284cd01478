"""What other people call a UPerNet's weights: theirs on the left and ours on the right.

`#` stands for a number. Rows of MODULES name convolution blocks and other modules, whose tensors
have the names of the layout's PARTS; a file need not hold every row (a pyramid for patches of 8 px
has fewer deconvolutions, a model without an auxiliary head none of its rows).
"""

from typing import NamedTuple

Rows = dict[str, str]

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_PLAIN = ("weight", "bias")

# A convolution block's tensors: the reference's library, and transformers' files, say it like this;
_FILE_BLOCK: Rows = {
    "conv.weight": "convolution.weight",
    **{f"bn.{part}": f"norm.{part}" for part in _NORM},
}
# and transformers 5 like this in memory.
_MEMORY_BLOCK: Rows = {
    "convolution.weight": "convolution.weight",
    **{f"normalization.{part}": f"norm.{part}" for part in _NORM},
}

# The decoder and the auxiliary head, of the reference and of transformers' files alike.
_FILE_BLOCKS: Rows = {
    "decode_head.psp_modules.#.1": "decoder.contexts.#.convolution",
    "decode_head.bottleneck": "decoder.context_fusion",
    "decode_head.lateral_convs.#": "decoder.laterals.#",
    "decode_head.fpn_convs.#": "decoder.smoothings.#",
    "decode_head.fpn_bottleneck": "decoder.fusion",
    "auxiliary_head.convs.0": "auxiliary.convolution",
}
_MEMORY_BLOCKS: Rows = {
    "decode_head.psp_modules.blocks.#.conv": "decoder.contexts.#.convolution",
    "decode_head.psp_bottleneck": "decoder.context_fusion",
    "decode_head.lateral_convs.#": "decoder.laterals.#",
    "decode_head.fpn_convs.#": "decoder.smoothings.#",
    "decode_head.fpn_bottleneck": "decoder.fusion",
    "auxiliary_head.convs.0": "auxiliary.convolution",
}

# The pyramid stands in the backbone there: two deconvolutions with a norm between them, and one.
_FILE_PYRAMID: Rows = {
    "fpn1.0": "decoder.pyramid.0.deconvolutions.0",
    "fpn1.3": "decoder.pyramid.0.deconvolutions.1",
    "fpn2.0": "decoder.pyramid.1.deconvolutions.0",
}
_FILE_PYRAMID_NORM: Rows = {"fpn1.1": "decoder.pyramid.0.norms.0"}
_MEMORY_PYRAMID: Rows = {
    "fpn.fpn1.conv_transpose1": "decoder.pyramid.0.deconvolutions.0",
    "fpn.fpn1.conv_transpose2": "decoder.pyramid.0.deconvolutions.1",
    "fpn.fpn2": "decoder.pyramid.1.deconvolutions.0",
}
_MEMORY_PYRAMID_NORM: Rows = {"fpn.fpn1.normalization": "decoder.pyramid.0.norms.0"}

_REFERENCE_CLASSIFIERS: Rows = {
    "decode_head.conv_seg": "decoder.classifier.output",
    "auxiliary_head.conv_seg": "auxiliary.classifier.output",
}
_HUB_CLASSIFIERS: Rows = {
    "decode_head.classifier": "decoder.classifier.output",
    "auxiliary_head.classifier": "auxiliary.classifier.output",
}


def _with_parts(modules: Rows, parts: Rows) -> Rows:
    return {
        f"{theirs}.{part}": f"{ours}.{own}"
        for theirs, ours in modules.items()
        for part, own in parts.items()
    }


def _same(names: tuple[str, ...]) -> Rows:
    return {name: name for name in names}


def _prefixed(rows: Rows, prefix: str) -> Rows:
    return {prefix + theirs: ours for theirs, ours in rows.items()}


class DecoderLayout(NamedTuple):
    """A family of segmenters' files.

    Attributes:
        name: Whose it is.
        rows: Every tensor beside the encoder's.
        backbone: What stands before the encoder's names and is taken off them.
        decoder: What the names of the decoder, auxiliary head and pyramid begin with.
        classifier: The weight that tells this layout from the others, and how many classes.
    """

    name: str
    rows: Rows
    backbone: str
    decoder: tuple[str, ...]
    classifier: str


REFERENCE = DecoderLayout(
    "reference",
    {
        **_with_parts(_FILE_BLOCKS, _FILE_BLOCK),
        **_with_parts(_prefixed(_FILE_PYRAMID, "backbone."), _same(_PLAIN)),
        **_with_parts(_prefixed(_FILE_PYRAMID_NORM, "backbone."), _same(_NORM)),
        **_with_parts(_REFERENCE_CLASSIFIERS, _same(_PLAIN)),
    },
    backbone="backbone.",
    decoder=("decode_head.", "auxiliary_head.", "backbone.fpn"),
    classifier="decode_head.conv_seg.weight",
)
TRANSFORMERS = DecoderLayout(
    "transformers",
    {
        **_with_parts(_FILE_BLOCKS, _FILE_BLOCK),
        **_with_parts(_FILE_PYRAMID, _same(_PLAIN)),
        **_with_parts(_FILE_PYRAMID_NORM, _same(_NORM)),
        **_with_parts(_HUB_CLASSIFIERS, _same(_PLAIN)),
    },
    backbone="",
    decoder=("decode_head.", "auxiliary_head.", "fpn1.", "fpn2."),
    classifier="decode_head.classifier.weight",
)
TRANSFORMERS_5 = DecoderLayout(
    "transformers 5",
    {
        **_with_parts(_MEMORY_BLOCKS, _MEMORY_BLOCK),
        **_with_parts(_MEMORY_PYRAMID, _same(_PLAIN)),
        **_with_parts(_MEMORY_PYRAMID_NORM, _same(_NORM)),
        **_with_parts(_HUB_CLASSIFIERS, _same(_PLAIN)),
    },
    backbone="",
    decoder=("decode_head.", "auxiliary_head.", "fpn."),
    classifier="decode_head.classifier.weight",
)

DECODER_LAYOUTS = (REFERENCE, TRANSFORMERS, TRANSFORMERS_5)

# Where the encoder's blocks stand in transformers' names, in files and in memory.
HUB_BLOCKS = ("beit.encoder.layer.", "beit.layers.")
