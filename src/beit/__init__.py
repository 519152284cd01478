"""BEiT: BERT pre-training of image Transformers (arXiv:2106.08254)."""

__version__ = "0.1.0"
