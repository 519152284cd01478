"""The engine room: the fit loop and all it needs, from the optimiser to crash-proof checkpoints.

`fit.py` alone calls `backward`, clips, steps, logs and saves; `protocol.py` is what it asks of a
task. Plain torch, no trainer framework.
"""
