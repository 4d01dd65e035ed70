from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def world() -> ModuleType:
    """tests/train/world.py, loaded by path: test folders are no packages."""
    path = Path(__file__).with_name("world.py")
    spec = importlib.util.spec_from_file_location("training_world", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["training_world"] = module
    spec.loader.exec_module(module)
    return module
