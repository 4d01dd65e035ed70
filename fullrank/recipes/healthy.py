"""The log of `collapse` without its planted collapse: what the cures do where nothing is ill."""

from __future__ import annotations

from dataclasses import replace

from fullrank.data.datasets.simulated_collapse import at
from fullrank.recipes import collapse
from fullrank.recipes._cures import Cures

RECIPES: Cures = replace(collapse.RECIPES, dataset=at(partner=0.0), prefix="healthy")
