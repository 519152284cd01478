"""Which beit this is; the same as in pyproject.toml, which a test holds."""

VERSION = "0.1.0"
