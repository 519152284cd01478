"""From bytes to pixels: which formats there are, and the one way a file becomes a picture."""
