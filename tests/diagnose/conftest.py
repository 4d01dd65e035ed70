"""Fixtures of the diagnostics tests."""

from __future__ import annotations

import pytest
import torch

from fullrank.diagnose.records import RunContext
from tests.diagnose.tiny_ranker import Tiny


@pytest.fixture
def tiny() -> Tiny:
    torch.manual_seed(0)
    return Tiny()


@pytest.fixture
def context() -> RunContext:
    return RunContext(run_id="run", variant="tiny", seed=3, epoch=1.0)
