"""Layers. They know tensors, not batches."""
