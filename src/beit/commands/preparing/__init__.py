"""What can be computed before a training: banks of tokens, packed pictures."""
