"""Recipes: one file per data set, one function per run; see `fullrank.workflow.recipe`."""
