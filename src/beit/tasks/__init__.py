"""Tasks: a batch in, a StepOutput (loss, weight, metrics) out."""
