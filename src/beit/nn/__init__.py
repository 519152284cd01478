"""The model room: tensors in, tensors out; one encoder for every task, heads beside it."""
