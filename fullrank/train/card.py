"""The model card: every default that changes a result, with its value, in one place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fullrank.disk import write_text
from fullrank.train.config import TrainConfig
from fullrank.train.optim import Optimizers, tables_of

_NORMS = ("BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm")
_SCALE_ROWS = 100_000  # rows of a table that are looked at


def model_card(  # length: one line per default that changes a result
    model: nn.Module, config: TrainConfig, optimizers: Optimizers, precision: str
) -> dict[str, dict[str, Any]]:
    """Describes a run by looking at its modules and settings.

    Two papers that name the same model often differ in these lines and in nothing else.

    Args:
        model: before its first step, so that the scale of the embeddings is the initial one.
        config: the settings.
        optimizers: as they were built for this model.
        precision: as it was resolved for the device.

    Returns:
        Section -> name -> value, plain JSON types.
    """
    tables = tables_of(model)
    held = {id(e.rows) for e in tables}
    dense = sum(p.numel() for p in model.parameters() if id(p) not in held)
    coupling = "decoupled" if config.optimizer == "adamw" else "coupled (part of the gradient)"
    rows = "the rows of the batch" if optimizers.tables not in ("adam", "none") else "every row"
    return {
        "model": {
            "class": type(model).__name__,
            "dense parameters": dense,
            "table parameters": sum(e.rows.numel() for e in tables),
            "table rows": sum(e.rows.shape[0] for e in tables),
            "embedding width": sorted({e.dim for e in tables}),
            "embedding initial scale": [_scale(e.rows) for e in tables],
            **{name: _count(model, name) for name in _NORMS},
            "dropout": _dropouts(model),
        },
        "optimiser": {
            "dense": f"{config.optimizer} (fused)",
            "tables": optimizers.tables,
            "tables chosen": "by measured rule" if config.table_optimizer == "auto" else "by name",
            "learning rate": config.learning_rate,
            "table learning rate": config.table_learning_rate or config.learning_rate,
            "weight decay": config.weight_decay,
            "weight decay coupling": f"{coupling}; matrices alone",
            "table L2": config.table_l2,
            "table L2 coupling": f"coupled (lambda * w in the gradient), on {rows}",
            "schedule": config.schedule,
            "warm-up steps": config.warmup_steps,
            "final factor": config.final_factor,
            "plateau factor": config.plateau_factor if config.schedule == "plateau" else None,
        },
        "step": {
            "batch size": config.batch_size,
            "accumulate": config.accumulate,
            "epochs": config.epochs,
            "precision": precision,
            "compile": config.compile,
            "threads": config.threads or torch.get_num_threads(),
            "freed memory": "kept for the next step"
            if config.keep_memory
            else "as the system does",
        },
        "thresholds": {
            "clip norm": config.clip_norm,
            "metric": config.metric,
            "higher is better": config.higher_is_better,
            "patience": config.patience,
            "ends with": "best weights" if config.restore_best else "last weights",
            "explosion": f"loss {config.explode_factor:g} medians above the median for "
            f"{config.explode_steps} batches",
        },
    }


def save_card(folder: Path | None, card: dict[str, dict[str, Any]]) -> None:
    """Writes `card.json` atomically, if there is a folder."""
    if folder is None:
        return
    write_text(folder / "card.json", json.dumps(card, indent=1))


def card_table(card: dict[str, dict[str, Any]]) -> Any:
    """Returns a rich table for the terminal."""
    from rich.table import Table

    table = Table(title=f"Model card: {card['model']['class']}", title_justify="left")
    for column in ("", "setting", "value"):
        table.add_column(column)
    for section, lines in card.items():
        for i, (name, value) in enumerate(lines.items()):
            table.add_row(section if i == 0 else "", name, _shown(value))
        table.add_section()
    return table


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return str(value)


def _scale(rows: torch.Tensor) -> float:
    """Standard deviation of the rows that are not all zero."""
    x = rows.detach()[:_SCALE_ROWS]
    x = x[x.abs().sum(dim=1) > 0]
    return round(float(x.std()), 6) if x.numel() > 1 else 0.0


def _count(model: nn.Module, name: str) -> int:
    return sum(name in type(m).__name__ for m in model.modules())


def _dropouts(model: nn.Module) -> list[float]:
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
    return sorted({m.p for m in model.modules() if isinstance(m, kinds) and m.p > 0})
