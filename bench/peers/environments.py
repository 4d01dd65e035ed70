"""One virtual environment per peer, built with what was found to make each of them start.

The environments lie in bench/.envs/, apart from the library's own: the peers pin old versions
of the libraries that this project needs new.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ENVIRONMENTS = Path(__file__).resolve().parent.parent / ".envs"

# torch alone first: pinned exactly, the CPU wheel is taken and every peer gets the same one.
TORCH = "torch==2.13.0"
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    # polars 2 removed the argument `dtypes` that its CSV reader passes.
    "fuxictr": ("fuxictr==2.3.10", "polars<2"),
    # Imports np.float_ and pkg_resources, both gone from newer releases.
    "recbole": ("recbole==1.2.1", "numpy<2", "pandas<3", "setuptools<81"),
    "torch_rechub": ("torch-rechub==0.9.0",),
    # Imports requests and pandas without declaring them.
    "deepctr_torch": ("deepctr-torch==0.3.0", "requests", "pandas"),
    # Serves our model: what reads an artefact is needed too.
    "fastapi": (
        *("fastapi==0.165.0", "pydantic==2.14.3", "uvicorn==0.54.0", "httptools==0.9.0"),
        *("polars==2.1.0", "pyarrow==26.0.1", "safetensors==0.8.0", "numpy==2.4.6"),
    ),
}


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment, whether or not it exists yet."""
    return ENVIRONMENTS / peer / "bin" / "python"


def is_ready(peer: str) -> bool:
    """Whether the environment was built to the end with today's requirements."""
    marker = ENVIRONMENTS / peer / "requirements.txt"
    return marker.exists() and marker.read_text() == _wanted(peer)


def build(peer: str) -> None:
    """Builds one environment, minutes for each; does nothing where it is ready."""
    if is_ready(peer):
        return
    folder = ENVIRONMENTS / peer
    print(f"installing {peer} into {folder}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(python_of(peer)), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, TORCH], check=True)
    subprocess.run([*pip, TORCH, *REQUIREMENTS[peer]], check=True)
    (folder / "requirements.txt").write_text(_wanted(peer))


def freeze(peer: str) -> list[str]:
    """Every package of the environment with its version, for the record."""
    command = [str(python_of(peer)), "-m", "pip", "freeze"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def _wanted(peer: str) -> str:
    return "\n".join((TORCH, *REQUIREMENTS[peer])) + "\n"
