"""Image tokenizers: a picture in, a grid of visual tokens out (arXiv:2106.08254, section 2.1.2)."""
