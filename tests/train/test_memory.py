from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own: the setting is of the whole process and stays. Blocks of 40 MB, past what
# the C library keeps by itself, are allocated, touched and freed; without the setting the system
# hands out fresh pages each time.
PROGRAM = """
import resource, sys
import torch
from fullrank.train.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
def churn():
    for _ in range(3):
        blocks = [torch.ones(10_000_000) for _ in range(3)]
        del blocks
for _ in range(5):
    churn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
churn()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    )
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only: nothing to keep")
def test_freed_blocks_are_used_again_instead_of_faulted_in() -> None:
    kept, with_setting = faults("keep")
    if kept == "False":
        pytest.skip("this C library has no mallopt: training runs without the setting")
    _, without = faults("leave")
    assert with_setting < without / 10
