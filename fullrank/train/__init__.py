"""The flat loop, its optimisers and its state."""
