"""Optimisers: fused Adam for dense parameters, row-wise ones for large embedding tables.

A sparse gradient costs what the batch costs; a dense one costs what the table costs. PyTorch's
fused Adam, gradient clipping and weight decay refuse sparse gradients, so the two sparse
optimisers here bring their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fullrank.embedding import Embeddings
from fullrank.errors import DivergedError
from fullrank.schema import Bag, Categorical
from fullrank.train.config import TrainConfig

TableOptimizer = Literal["adam", "lazy_adam", "rowwise_adagrad"]

# Dense Adam costs per row of the table, lazy Adam per look-up of the batch. With 40,960 look-ups of
# width 10, 16 and 64, even and skewed, dense over lazy was 0.85-1.10 at 2 rows per look-up,
# 1.09-1.26 at 4, 1.39-1.95 at 8 and 3.8-8.7 at 48 (bench/table_optimizers.py). So up to 4, where
# nothing is lost by it, tables get the exact Adam.
BREAK_EVEN = 4.0


def distinct_rows(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Adds up a gradient row by row.

    `torch.unique` on 32-bit row numbers and `index_add_` take a fifth of what `coalesce` takes.

    Args:
        grad: [V, D], sparse. A dense one, from a tied output for example, is
            accepted and costs V: its all-zero rows count as untouched.

    Returns:
        [U] int64 row numbers, rising, and [U, D] sums.
    """
    if not grad.is_sparse:
        rows = grad.abs().sum(dim=1).nonzero().squeeze(1)  # [U]
        return rows, grad.index_select(0, rows)
    if grad.is_coalesced():
        return grad.indices()[0], grad.values()
    ids, values = grad._indices()[0], grad._values()  # [N], [N, D]
    if grad.shape[0] <= torch.iinfo(torch.int32).max:
        ids = ids.to(torch.int32)
    rows, inverse = torch.unique(ids, return_inverse=True)  # [U], [N]
    sums = values.new_zeros(rows.shape[0], values.shape[1])
    return rows.to(torch.int64), sums.index_add_(0, inverse, values)  # [U], [U, D]


class RowWiseAdagrad(Optimizer):
    """Adagrad with one accumulator per row, for embedding tables.

    For every row that the batch read: a += mean over D of g^2; w -= lr * g / (sqrt(a) + eps).
    Duchi et al. 2011, with the accumulator of a row shared as in FBGEMM's exact row-wise Adagrad.
    The state is D times smaller than Adagrad's. Other rows are not looked at.

    Args:
        params: tables [V, D].
        lr: learning rate.
        eps: keeps the first step of a row with a tiny gradient finite.
        l2: l2 * w is added to the gradient of the rows that the batch read, and of no other.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 1e-2, eps: float = 1e-8, l2: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "l2": l2})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates the rows that have a gradient. A closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                state = self.state[table]
                if not state:
                    state["sum"] = table.new_zeros(table.shape[0])  # [V]
                rows, g = distinct_rows(table.grad)  # [U], [U, D]
                old = table.index_select(0, rows)  # [U, D]
                if group["l2"]:
                    g = g.add_(old, alpha=group["l2"])
                total = state["sum"].index_select(0, rows) + g.square().mean(dim=1)  # [U]
                state["sum"].index_copy_(0, rows, total)
                scale = group["lr"] / (total.sqrt() + group["eps"])  # [U]
                table.index_copy_(0, rows, old.addcmul_(g, scale.unsqueeze(1), value=-1.0))


class LazyAdam(Optimizer):
    """Adam whose moments and weights change only for the rows that the batch read.

    It is not Adam: a row that was not read keeps its moments as they are, where Adam decays them
    and goes on moving the row. On a table whose rows are all read at each step the two are equal.
    The bias correction uses the number of all steps, not the number of times a row was read, as
    Adam and `torch.optim.SparseAdam` do; so the first step of a row that appears late is the same
    as in Adam. Kingma & Ba, ICLR 2015, algorithm 1.

    Args:
        params: tables [V, D].
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        l2: l2 * w is added to the gradient of the rows that the batch read, and of no other:
            a row is regularised as often as it is read.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        l2: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "l2": l2})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates the rows that have a gradient. A closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, group)

    def _update(self, table: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(table)  # [V, D]; pages never written cost nothing
            state["exp_avg_sq"] = torch.zeros_like(table)  # [V, D]
        assert table.grad is not None
        rows, g = distinct_rows(table.grad)  # [U], [U, D]
        old = table.index_select(0, rows)  # [U, D]
        if group["l2"]:
            g = g.add_(old, alpha=group["l2"])
        state["step"] += 1
        t, (beta1, beta2) = int(state["step"]), group["betas"]
        first = state["exp_avg"].index_select(0, rows).lerp_(g, 1 - beta1)  # [U, D]
        second = state["exp_avg_sq"].index_select(0, rows).mul_(beta2)
        second.addcmul_(g, g, value=1 - beta2)  # [U, D]
        state["exp_avg"].index_copy_(0, rows, first)
        state["exp_avg_sq"].index_copy_(0, rows, second)
        root = second.sqrt_().div_(math.sqrt(1 - beta2**t)).add_(group["eps"])
        old.addcdiv_(first, root, value=-group["lr"] / (1 - beta1**t))
        table.index_copy_(0, rows, old)


@dataclass(frozen=True)
class Optimizers:
    """Every optimiser of a model, and what each of them was chosen to be.

    Args:
        each: their `param_groups` carry "peak", the learning rate before the schedule.
        tables: name of the optimiser of tables; "none" for a model without any.
    """

    each: tuple[Optimizer, ...]
    tables: str

    def step(self, factor: float) -> None:
        """Takes one step with every learning rate at `factor` of its peak."""
        for optimizer in self.each:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.step()

    def zero_grad(self) -> None:
        """Drops every gradient."""
        for optimizer in self.each:
            optimizer.zero_grad(set_to_none=True)


def tables_of(model: nn.Module) -> list[Embeddings]:
    """Returns the `Embeddings` of a model that own at least one table."""
    found = (m for m in model.modules() if isinstance(m, Embeddings))
    return [m for m in found if m.schema.tables]


def lookups_per_row(embeddings: Embeddings) -> int:
    """Returns how many table rows one row of a batch reads; bags and sequences at their longest."""
    schema = embeddings.schema
    fields = sum(
        f.max_length if isinstance(f, Bag) else 1
        for f in schema.fields
        if isinstance(f, Categorical | Bag)
    )
    events = sum(s.max_length * sum(t is not None for _, t in s.columns) for s in schema.sequences)
    return fields + events


def choose_table_optimizer(model: nn.Module, config: TrainConfig) -> TableOptimizer:
    """Returns the optimiser of tables, resolving "auto" by `BREAK_EVEN`."""
    if config.table_optimizer != "auto":
        return config.table_optimizer
    tables = tables_of(model)
    rows = sum(e.rows.shape[0] for e in tables)
    lookups = config.batch_size * sum(map(lookups_per_row, tables))
    return "lazy_adam" if rows > BREAK_EVEN * lookups else "adam"


def build_optimizers(model: nn.Module, config: TrainConfig) -> Optimizers:
    """Returns the optimisers of a model and sets `Embeddings.sparse` to what they expect.

    Parameters fall in three groups: matrices of the dense part (weight decay), its vectors (none),
    and tables (coupled L2).
    """
    owners = tables_of(model)
    tables = [e.rows for e in owners if e.rows.requires_grad]
    held = {id(t) for t in tables}
    dense = [p for p in model.parameters() if p.requires_grad and id(p) not in held]
    decoupled = config.optimizer == "adamw"
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in dense if p.ndim >= 2],
            "weight_decay": config.weight_decay,
            "decoupled_weight_decay": decoupled,
        },
        {"params": [p for p in dense if p.ndim < 2]},
    ]
    table_rate = config.table_learning_rate or config.learning_rate
    chosen = choose_table_optimizer(model, config) if tables else "none"
    sparse: list[Optimizer] = []
    if chosen == "adam":
        groups.append({"params": tables, "weight_decay": config.table_l2, "lr": table_rate})
    elif chosen == "lazy_adam":
        sparse = [LazyAdam(tables, lr=table_rate, l2=config.table_l2)]
    elif chosen == "rowwise_adagrad":
        sparse = [RowWiseAdagrad(tables, lr=table_rate, l2=config.table_l2)]
    for owner in owners:
        owner.sparse = bool(sparse)
    groups = [g for g in groups if g["params"]]
    each = [torch.optim.Adam(groups, lr=config.learning_rate, fused=True)] if groups else []
    for optimizer in (*each, *sparse):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return Optimizers(each=(*each, *sparse), tables=chosen)


def clip_gradients(
    parameters: Sequence[tuple[str, nn.Parameter]], limit: float, where: str = "this step"
) -> float:
    """Scales all gradients, dense and sparse, so that their global norm is at most `limit`.

    A sparse gradient is first added up row by row, because the squares of its parts do not add up
    to the square of their sum.

    Args:
        parameters: names and parameters; those without a gradient are passed over.
        limit: the largest norm.
        where: the step, for the message.

    Returns:
        The norm before.

    Raises:
        DivergedError: the norm is NaN or infinite; the first such gradient is named.
    """
    norms: list[tuple[str, Tensor]] = []
    parts: list[Tensor] = []
    for name, parameter in parameters:
        grad = parameter.grad
        if grad is None:
            continue
        if grad.is_sparse:
            rows, sums = distinct_rows(grad)
            grad = torch.sparse_coo_tensor(
                rows.unsqueeze(0), sums, grad.shape, is_coalesced=True, check_invariants=False
            )
            parameter.grad = grad
        part = grad._values() if grad.is_sparse else grad
        parts.append(part)
        norms.append((name, torch.linalg.vector_norm(part)))
    if not norms:
        return 0.0
    norm = float(torch.linalg.vector_norm(torch.stack([n for _, n in norms])))
    if not math.isfinite(norm):
        bad = next((name for name, n in norms if not math.isfinite(float(n))), "all together")
        raise DivergedError(
            "a gradient became NaN or infinite",
            where=where,
            found=f"norm {norm}; first bad gradient '{bad}'",
            expected="a finite number",
            fix="lower the learning rate, or look for extreme values in the batch; the last good "
            "state was kept",
        )
    if norm > limit:
        for part in parts:
            part.mul_(limit / norm)
    return norm
