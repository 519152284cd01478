"""Recipes: what to train, as frozen values, and the one place where objects are put together."""
