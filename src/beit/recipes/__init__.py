"""Recipes: what to train, as frozen values, their names, and how fields are set."""
