"""Recipes: a run is a function that returns a Recipe."""
