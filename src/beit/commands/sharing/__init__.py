"""Weights in other people's formats, graphs, and folders for the hub."""
