"""Recurrences over rows of unequal length: the GRU, and those whose gate listens to attention.

    u = sigmoid(W_u x + U_u s + b_u)         how much of the state to renew
    r = sigmoid(W_r x + U_r s + b_r)         how much of the state the candidate sees
    n = tanh(W_n x + r * (U_n s) + b_n)      the candidate; r acts behind the product, as in torch
    s = (1 - w) * s + w * n                  w = u (GRU), a u (AUGRU) or a (AGRU)

AUGRU and AGRU with an attention a in [0, 1] per event: DIEN, arXiv:1809.03672, eqs. 10 to 16.

Rows are sorted by length and laid out step by step, so that the rows in progress are always the
first ones and no step is computed for padding. All products with the inputs are one product. The
backward pass is written by hand: with PyTorch's own, a step of a small GRU is mostly bookkeeping.
See bench/recurrent.py.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Recurrence = Literal["GRU", "AUGRU", "AGRU"]

# Kernels treat the last few rows of a matrix, and products of few rows, in their own order of
# addition. With steps of whole groups a row's bits depend on no other row of its block.
_GROUP = 32


class Steps(NamedTuple):
    """Where each event of a batch goes when rows advance together, step by step.

        row 0: a b      step 0: c a f      rows in the order 1, 0, 2; row 3 is empty
        row 1: c d e    step 1: d b .
        row 2: f        step 2: e . .      a place without an event reads some event, to no effect

    Args:
        sizes: rows computed at each step, never rising.
        order: [B] int64, the row at each place, longest row first.
        event: [N] int64, the event at each place of each step, N the sum of `sizes`.
        place: [N] int64, the place within its step.
        real: [N] bool, True where there is an event.
        slot: [S] int64, where in the N each event is; None in an exported program.
        last: [R] int64, where in the N the newest events of the R rows that have any are, in
            `order`; None in an exported program.
    """

    sizes: list[int]
    order: Tensor
    event: Tensor
    place: Tensor
    real: Tensor
    slot: Tensor | None
    last: Tensor | None

    def lay_out(self, x: Tensor) -> Tensor:
        """Returns [N, D] for events [S, D]; places without an event pass no gradient on."""
        if self.slot is None:
            return x.index_select(0, self.event)
        out: Tensor = _Exchange.apply(x, self.event, self.slot, None)  # type: ignore[no-untyped-call]
        return out

    def collect(self, x: Tensor) -> Tensor:
        """Returns events [S, D] for [N, D]."""
        assert self.slot is not None
        blank = (~self.real).nonzero().flatten()
        out: Tensor = _Exchange.apply(x, self.slot, self.event, blank)  # type: ignore[no-untyped-call]
        return out

    def dots(self, x: Tensor, q: Tensor) -> Tensor:
        """Returns the product of each event with its row: [N] for [N, D] and rows [B, D]."""
        q = q.index_select(0, self.order)
        if self.slot is None:
            return (x * q.index_select(0, self.place)).sum(1)
        out: Tensor = _Dots.apply(x, q.to(x.dtype), self.sizes)  # type: ignore[no-untyped-call]
        return out

    def softmax(self, scores: Tensor) -> Tensor:
        """Returns shares [N] that sum to one over the events of a row, 0 without an event."""
        rows, steps = self.order.shape[0], len(self.sizes)
        lowest = torch.finfo(scores.dtype).min  # not -inf: a row without events is no NaN
        scores = torch.where(self.real, scores, lowest)
        if self.slot is None:
            return scores.view(steps, rows).softmax(0).flatten() * self.real
        at = self._step() * rows + self.place
        square = scores.new_full((steps * rows,), lowest).index_copy(0, at, scores)
        return square.view(steps, rows).softmax(0).flatten().index_select(0, at) * self.real

    def rectangle(self, x: Tensor, length: int) -> Tensor:
        """Returns [B, T, ...] with zeros at padding, which is on the right, for [N, ...]."""
        at = self.order[self.place] * length + self._step()
        out = x.new_zeros(self.order.shape[0] * length, *x.shape[1:])
        out.index_copy_(0, at[self.real], x.detach()[self.real])
        return out.view(-1, length, *x.shape[1:])

    def _step(self) -> Tensor:
        device = self.place.device
        sizes = torch.tensor(self.sizes, dtype=torch.int64, device=device)
        step = torch.arange(len(self.sizes), device=device)
        return step.repeat_interleave(sizes, output_size=self.place.shape[0])


def steps_of(offsets: Tensor, length: int, events: int) -> Steps:
    """Lays out the newest events of each row, oldest first.

    Args:
        offsets: [B + 1] int64, where each row's events begin.
        length: T, newest events of a row that are read.
        events: S, of which an exported program has at least one.
    """
    rows, device = offsets.shape[0] - 1, offsets.device
    kept = (offsets[1:] - offsets[:-1]).clamp(max=length)  # [B]
    first = offsets[1:] - kept  # [B]
    if torch.compiler.is_compiling():
        order = torch.arange(rows, device=device)
        step = torch.arange(length, device=device)[:, None]  # [T, 1]
        real = step < kept  # [T, B]
        event = torch.where(real, first + step, 0).flatten()
        place = order.repeat(length)
        return Steps([rows] * length, order, event, place, real.flatten(), None, None)
    order = kept.argsort(descending=True, stable=True)
    alive = rows - torch.bincount(kept).cumsum(0)[:-1]  # rows with more than t events
    sizes = (-(-alive // _GROUP) * _GROUP).clamp(max=rows)
    start = sizes.cumsum(0) - sizes
    step = torch.arange(len(sizes), device=device).repeat_interleave(sizes)  # [N]
    at = torch.arange(step.shape[0], device=device)
    place = at - start[step]
    row = order[place]
    real = step < kept[row]
    event = torch.where(real, first[row] + step, 0)
    slot = event.new_zeros(events).index_copy_(0, event[real], at[real])
    filled = kept[order]
    filled = filled[filled > 0]
    last = start[filled - 1] + torch.arange(filled.shape[0], device=device)
    return Steps(sizes.tolist(), order, event, place, real, slot, last)


class GatedRecurrence(nn.Module):
    """One of the recurrences above; the first state is zero.

    Args:
        in_dim: I, width of an input.
        dim: D, width of the state.
        kind: "GRU", "AUGRU" or "AGRU". AGRU has no update gate of its own.
    """

    def __init__(self, in_dim: int, dim: int, kind: Recurrence = "GRU") -> None:
        super().__init__()
        self.dim, self.kind = dim, kind
        gates = 2 if kind == "AGRU" else 3
        spread = dim**-0.5  # as torch.nn.GRU
        self.weight = nn.Parameter(torch.empty(gates * dim, in_dim).uniform_(-spread, spread))
        self.recurrent = nn.Parameter(torch.empty(gates * dim, dim).uniform_(-spread, spread))
        self.bias = nn.Parameter(torch.zeros(gates * dim))

    def forward(
        self, x: Tensor, steps: Steps, attention: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Runs over the events of each row.

        Args:
            x: [N, I], laid out.
            steps: the layout.
            attention: [N] in [0, 1], and 0 without an event; None for "GRU".

        Returns:
            [N, D], the state after each event, and [B, D], the last state of each row, zero for a
            row without events.
        """
        assert (attention is None) == (self.kind == "GRU"), "GRU reads no attention, the others do"
        run = _traced if steps.slot is None else _eager
        return run(x, attention, self, steps)

    def extra_repr(self) -> str:
        """Returns the sizes for `print(model)`."""
        return f"{self.weight.shape[1]}, {self.dim}, kind={self.kind}"


def _eager(
    x: Tensor, a: Tensor | None, unit: GatedRecurrence, steps: Steps
) -> tuple[Tensor, Tensor]:
    kept = unit.weight, unit.recurrent, unit.bias
    with torch.autocast(x.device.type, enabled=False):  # the loop writes into float32
        x, a = x.to(unit.weight.dtype), None if a is None else a.to(unit.weight.dtype)
        after, final = _Run.apply(x, a, *kept, unit.kind, steps)  # type: ignore[no-untyped-call]
    return after, final


def _traced(
    x: Tensor, a: Tensor | None, unit: GatedRecurrence, steps: Steps
) -> tuple[Tensor, Tensor]:
    """The formulas as they are, over a rectangle: what `torch.export` can follow."""
    D, T = unit.dim, len(steps.sizes)
    shape = (T, steps.order.shape[0], -1)
    inputs = F.linear(x, unit.weight, unit.bias).view(shape)
    real = steps.real.view(shape)
    s = x.new_zeros(steps.order.shape[0], D)
    after = []
    for t in range(T):
        h = F.linear(s, unit.recurrent)
        gates = torch.sigmoid(inputs[t, :, :-D] + h[:, :-D])
        n = torch.tanh(inputs[t, :, -D:] + gates[:, -D:] * h[:, -D:])
        w = gates[:, :D] if a is None else a.view(shape)[t]
        if unit.kind == "AUGRU":
            w = w * gates[:, :D]
        s = torch.where(real[t], torch.lerp(s, n, w), s)
        after.append(s)
    return torch.cat(after), s


class _Run(torch.autograd.Function):
    """The recurrence and its derivative, one pass over the steps each."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        a: Tensor | None,
        weight: Tensor,
        recurrent: Tensor,
        bias: Tensor,
        kind: Recurrence,
        steps: Steps,
    ) -> tuple[Tensor, Tensor]:
        D, rows = recurrent.shape[1], steps.order.shape[0]
        assert steps.last is not None
        # Filled with the products of the inputs, and turned into gates and candidates in place.
        gates = torch.addmm(bias[:-D], x, weight[:-D].T)  # [N, 2 D]: u and r; AGRU: r
        news = torch.addmm(bias[-D:], x, weight[-D:].T)  # [N, D]: n
        seen, after = torch.empty_like(news), torch.empty_like(news)  # U_n s, and s
        to_gates, to_news = recurrent[:-D].T, recurrent[-D:].T
        s = x.new_zeros(rows, D)
        arrays = [gates, news, seen, after] + ([] if a is None else [a[:, None]])
        for g, n, q, out, *share in zip(*_by_step(arrays, steps.sizes), strict=True):
            before = s[: out.shape[0]]
            g.addmm_(before, to_gates).sigmoid_()
            torch.mm(before, to_news, out=q)
            n.addcmul_(g[:, -D:], q).tanh_()
            s = torch.lerp(before, n, _renewed(kind, g[:, :D], *share), out=out)
        final = x.new_zeros(rows, D)
        final.index_copy_(0, steps.order[: steps.last.shape[0]], after.index_select(0, steps.last))
        ctx.save_for_backward(x, a, weight, recurrent, gates, news, seen, after)
        ctx.kind, ctx.steps = kind, steps
        ctx.set_materialize_grads(False)
        return after, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_after: Tensor | None, d_final: Tensor | None) -> Any:
        x, a, weight, recurrent, gates, news, seen, after = ctx.saved_tensors
        steps: Steps = ctx.steps
        assert steps.last is not None
        D, rows, sizes = recurrent.shape[1], steps.order.shape[0], steps.sizes
        d = torch.zeros_like(after) if d_after is None else d_after.clone()  # of every state
        if d_final is not None:
            filled = steps.order[: steps.last.shape[0]]
            d.index_add_(0, steps.last, d_final.index_select(0, filled))
        d_sums = x.new_empty(x.shape[0], weight.shape[0])  # of what a gate or U_n s is made from
        d_news = torch.empty_like(news)  # of what a candidate is made from
        d_share = None if a is None else torch.empty_like(a)
        ends = [after.new_zeros(rows, D), *after.split(sizes)]
        before = [end[:size] for end, size in zip(ends, sizes, strict=False)]
        arrays = [gates, news, seen, d_sums, d_news, d]
        arrays += [] if a is None else [a[:, None], d_share]
        blocks = list(zip(before, *_by_step(arrays, sizes), strict=True))
        for t in reversed(range(len(sizes))):
            d_before = _step_back(ctx.kind, *blocks[t]).addmm_(blocks[t][4], recurrent)
            if t > 0:
                blocks[t - 1][6][: d_before.shape[0]].add_(d_before)
        d_recurrent = d_sums.T @ torch.cat([after[:0], *before])
        d_sums[:, -D:] = d_news
        d_x, d_weight = d_sums @ weight, d_sums.T @ x
        return d_x, d_share, d_weight, d_recurrent, d_sums.sum(0), None, None


def _by_step(arrays: list[Tensor], sizes: list[int]) -> list[tuple[Tensor, ...]]:
    return [torch.split(x, sizes) for x in arrays]


def _step_back(
    kind: Recurrence,
    s: Tensor,
    gates: Tensor,
    n: Tensor,
    q: Tensor,
    d_sums: Tensor,
    d_new: Tensor,
    d_s: Tensor,
    share: Tensor | None = None,
    d_share: Tensor | None = None,
) -> Tensor:
    """Fills the derivatives of one step; returns that of its first state past the products."""
    D = s.shape[1]
    u, r = gates[:, :D], gates[:, -D:]
    through = d_s * _renewed(kind, u, share)
    torch.ops.aten.tanh_backward.grad_input(through, n, grad_input=d_new)
    _sigmoid_back(d_new * q, r, d_sums[:, -2 * D : -D])
    torch.mul(d_new, r, out=d_sums[:, -D:])
    d_w = (n - s).mul_(d_s)
    if d_share is not None:
        torch.sum(d_w if kind == "AGRU" else d_w * u, 1, out=d_share)
    if kind != "AGRU":
        _sigmoid_back(d_w if share is None else d_w.mul_(share), u, d_sums[:, :D])
    return torch.sub(d_s, through, out=through)


def _sigmoid_back(d: Tensor, y: Tensor, out: Tensor) -> None:
    torch.ops.aten.sigmoid_backward.grad_input(d, y, grad_input=out)


def _renewed(kind: Recurrence, u: Tensor, share: Tensor | None = None) -> Tensor:
    """Returns w, how much of each state is renewed: [b, D] or [b, 1]."""
    if share is None:
        return u
    return share if kind == "AGRU" else u * share


class _Exchange(torch.autograd.Function):
    """x[there], whose derivative is a gather as well because the way back is known.

    cost: that of `index_select` adds row by row.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor, blank: Tensor | None) -> Tensor:
        ctx.save_for_backward(back, blank)
        return x.index_select(0, there)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> Any:
        back, blank = ctx.saved_tensors
        if d.shape[0] == 0:
            return d.new_zeros(back.shape[0], d.shape[1]), None, None, None
        d = d.index_select(0, back)
        return (d if blank is None else d.index_fill_(0, blank, 0.0)), None, None, None


class _Dots(torch.autograd.Function):
    """The product of each event with its row, a step at a time: nothing of size [N, D] is made."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, q: Tensor, sizes: list[int]) -> Tensor:
        ctx.save_for_backward(x, q)
        ctx.sizes = sizes
        out = x.new_empty(x.shape[0])
        for part, y in zip(*_by_step([x, out], sizes), strict=True):
            torch.sum(part * q[: part.shape[0]], 1, out=y)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> Any:
        (x, q), sizes = ctx.saved_tensors, ctx.sizes
        d_x, d_q = torch.empty_like(x), torch.zeros_like(q)
        for part, d_y, d_part in zip(*_by_step([x, d[:, None], d_x], sizes), strict=True):
            size = part.shape[0]
            torch.mul(q[:size], d_y, out=d_part)
            d_q[:size].addcmul_(part, d_y)
        return d_x, d_q, None
