"""Task tokens: which labels have one, and the towers that read them.

RankUp, arXiv:2604.17878, task-specific token decoupling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fullrank.config import require
from fullrank.errors import nearest
from fullrank.nn.head import num_labels, split_labels
from fullrank.nn.mlp import MLP, linear
from fullrank.schema import Schema


def task_labels(schema: Schema, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the labels that are tasks, in schema order.

    Args:
        schema: at least one label.
        tasks: names of labels; () is all of them.

    Raises:
        ConfigError: a task is no label, such as two tasks for one label, or is named twice.
        SchemaError: there is no label.
    """
    labels = tuple(label.name for label in schema.labels[: num_labels(schema)])
    for i, name in enumerate(tasks):
        require(
            name in labels and name not in tasks[:i],
            where="tasks",
            found=f"{len(tasks)}: {', '.join(tasks)}",
            expected=f"names out of the schema's {len(labels)}: {', '.join(labels)}, each once",
            fix=nearest(name, labels),
        )
    return tuple(name for name in labels if not tasks or name in tasks)


class TaskTowers(nn.Module):
    """One network per label on the pooled tokens, and on the state of its task token if it has one.

    Args:
        schema: at least one label.
        tasks: the K labels with a token, in the order of the tokens.
        dim: D.
        hidden: widths of each tower.
    """

    def __init__(
        self, schema: Schema, tasks: tuple[str, ...], dim: int, hidden: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.schema, self.tasks = schema, tasks
        self.towers = nn.ModuleList()
        for label in schema.labels:
            body = MLP(2 * dim if label.name in tasks else dim, hidden)
            self.towers.append(nn.Sequential(body, linear(body.out_dim, 1)))

    def forward(self, states: Tensor) -> dict[str, Tensor]:
        """Returns label -> logits [B] for [pooled | state of each task token], [B, (1 + K) D]."""
        pooled, *own = states.chunk(1 + len(self.tasks), dim=1)  # [B, D] each
        inputs = {label.name: pooled for label in self.schema.labels}
        for task, state in zip(self.tasks, own, strict=True):
            inputs[task] = torch.cat([state, pooled], dim=1)  # [B, 2 D]
        pairs = zip(self.towers, inputs.values(), strict=True)
        return split_labels(torch.cat([tower(x) for tower, x in pairs], dim=1), self.schema)
