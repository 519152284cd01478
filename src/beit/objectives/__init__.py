"""The losses: pure functions of tensors, each with its equation in the paper."""
