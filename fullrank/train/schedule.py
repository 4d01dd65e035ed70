"""Learning-rate schedules and early stopping: pure functions and one small memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fullrank.errors import ConfigError, nearest
from fullrank.train.config import TrainConfig

MIN_DELTA = 1e-6  # a smaller gain is no new best, as in FuxiCTR
MIN_PLATEAU_RATE = 1e-6  # FuxiCTR's floor


@dataclass(kw_only=True)
class Progress:
    """What validation has shown so far; saved with the state.

    Args:
        best: value of the metric at its best.
        best_epoch: epoch, from 0, of the best validation; None before the first.
        stale: validations in a row without a new best.
        plateaus: times that the learning rate was cut.
    """

    best: float = math.nan
    best_epoch: int | None = None
    stale: int = 0
    plateaus: int = 0

    def update(self, config: TrainConfig, values: dict[str, float], epoch: int) -> bool:
        """Takes one validation in. Returns True when it is a new best.

        Raises:
            ConfigError: `config.metric` is not among the values.
        """
        value = _metric(config.metric, values)
        gain = value - self.best if config.higher_is_better else self.best - value
        if (self.best_epoch is None or math.isnan(self.best)) or gain > MIN_DELTA:
            self.best, self.best_epoch, self.stale = value, epoch, 0
            return True
        self.stale += 1
        if config.schedule == "plateau":
            self.plateaus += 1
        return False

    def should_stop(self, config: TrainConfig) -> bool:
        """Returns True when patience has run out."""
        return config.patience is not None and self.stale >= config.patience


def rate_factor(config: TrainConfig, step: int, total: int, plateaus: int = 0) -> float:
    """Returns the share of the peak learning rate that a step uses.

    Args:
        config: names the schedule.
        step: optimiser steps taken before this one, from 0.
        total: optimiser steps of the whole run.
        plateaus: cuts so far.

    Returns:
        Warm-up reaches 1 at step `warmup_steps - 1`. A decay starts there and reaches
        `final_factor` at step `total - 1`.
    """
    warmup = config.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "plateau":
        floor = min(1.0, MIN_PLATEAU_RATE / config.learning_rate)
        return max(float(config.plateau_factor**plateaus), floor)
    if config.schedule == "none":
        return 1.0
    start = max(warmup - 1, 0)
    done = min((step - start) / max(total - 1 - start, 1), 1.0)
    left = 1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return config.final_factor + (1.0 - config.final_factor) * left


def _metric(name: str, values: dict[str, float]) -> float:
    """Finds "auc", or "click/auc" of the first label where there are several."""
    name = next((n for n in values if n == name or n.endswith(f"/{name}")), name)
    if name not in values:
        raise ConfigError(
            "the metric that decides which weights are best was not measured",
            where="TrainConfig.metric",
            found=f"'{name}'",
            expected="one of: " + ", ".join(sorted(values)),
            fix=nearest(name, values),
        )
    return values[name]
