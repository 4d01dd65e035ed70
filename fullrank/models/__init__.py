"""Models: one paper, one file. They never import one another."""
