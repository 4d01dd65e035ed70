"""fullrank: ranking models that keep their rank.

Importing this package does no work; the public names are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Batch": "fullrank.batch",
    "Embeddings": "fullrank.embedding",
    "FullrankError": "fullrank.errors",
    "Schema": "fullrank.schema",
    "Tap": "fullrank.tap",
    "create": "fullrank.model",
    "list_models": "fullrank.model",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'fullrank' has no attribute '{name}'")
