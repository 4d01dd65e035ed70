"""Explain: how much each token of a row carried its score.

A token is what the model reads: the value of a column, or one event of a history. It is left out
alone, and the row is scored again: an empty value stands for a missing one, as in an optional
column, and reads the unknown row where it is a category's. The change of the logit is the answer.

Our definition. Tokens that say the same thing cover for one another, and each alone shows little;
the changes therefore need not add up to anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fullrank.batch import Batch, Columns, Jagged
from fullrank.data.spec import Column, History, Spec, Target
from fullrank.serve.problem import MOST_INPUT, shown
from fullrank.serve.wire import Given

MOST_EVENTS = 50  # of a history that are left out one by one, the newest


@dataclass(frozen=True)
class Token:
    """One thing that the model reads of a row.

    Args:
        column: of the spec.
        event: place in the history as it was given; None for a whole column.
        value: as it was given, at most 100 characters.
    """

    column: str
    event: int | None
    value: str


@dataclass(frozen=True)
class LeftOut:
    """A row, and the same row without each of its tokens.

    Args:
        batch: 1 + len(tokens) rows; the first is whole, the others lack one token each.
        tokens: in the order of the rows.
        events_not_tried: those that the model may read and that are in `batch` no token.
    """

    batch: Batch
    tokens: tuple[Token, ...]
    events_not_tried: int


def leave_out(row: Batch, blank: Batch, spec: Spec, given: Given) -> LeftOut:
    """Returns a row without each of its tokens; what is empty already is no token.

    Args:
        row: one row.
        blank: one row of the same schema, in which every column is empty.
        spec: of both.
        given: what the row was encoded from.
    """
    tokens: list[Token] = []
    not_tried = 0
    for c in spec.columns:
        tokens += _tokens(c, row, given)
        if isinstance(c, History):
            not_tried += max(0, _events(c, row) - MOST_EVENTS)
    return LeftOut(_variants(row, blank, tokens, given, spec), tuple(tokens), not_tried)


def told(left_out: LeftOut, logits: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """Returns what is answered: the tokens whose lack changes most come first.

    Args:
        left_out: T tokens.
        logits: [1 + T], uncalibrated.
        probabilities: [1 + T], calibrated.
    """
    changes = logits[1:].astype(np.float64) - np.float64(logits[0])
    order = np.argsort(-np.abs(changes), kind="stable").tolist()
    return {
        "logit": float(logits[0]),
        "probability": float(probabilities[0]),
        "tokens": [
            {
                "column": left_out.tokens[t].column,
                "event": left_out.tokens[t].event,
                "value": left_out.tokens[t].value,
                "change": float(changes[t]),
                "probability_without": float(probabilities[t + 1]),
            }
            for t in order
        ],
        "events_not_tried": left_out.events_not_tried,
    }


def _tokens(column: Column, row: Batch, given: Given) -> list[Token]:
    """Returns the column as a whole, and after it the events of a history."""
    if isinstance(column, Target):
        return []
    if not isinstance(column, History):
        value = given.columns.get(column.name, (None,))[0]
        bag = row.bags.get(column.name)
        empty = value is None or (bag is not None and not int(bag.offsets[-1]))
        return [] if empty else [Token(column.name, None, _text(value))]
    count = _events(column, row)
    if not count:
        return []
    raw = [given.columns[e.column][0] for e in column.events if e.column in given.columns]
    tried = range(len(raw[0]) - min(count, MOST_EVENTS), len(raw[0]))
    whole = Token(column.name, None, "1 event" if count == 1 else f"all {count} events")
    return [whole, *(Token(column.name, p, _text([x[p] for x in raw])) for p in tried)]


def _variants(row: Batch, blank: Batch, tokens: Sequence[Token], given: Given, spec: Spec) -> Batch:
    rows = 1 + len(tokens)
    wholes = {t.column: i for i, t in enumerate(tokens, 1) if t.event is None}

    def lacks(names: Sequence[str]) -> Tensor:
        """Returns [rows, names] bool, True where a row lacks that column."""
        out = torch.zeros(rows, len(names), dtype=torch.bool)
        for place, name in enumerate(names):
            if name in wholes:
                out[wholes[name], place] = True
        return out

    def columns(mine: Columns, empty: Columns) -> Columns:
        return Columns(mine.names, torch.where(lacks(mine.names), empty.block, mine.block))

    def vector(name: str) -> Tensor:
        mine, lack = row.dense[name], lacks([name])
        return torch.where(lack.reshape(rows, *[1] * (mine.ndim - 1)), blank.dense[name], mine)

    same = torch.zeros(rows, dtype=torch.int64)
    histories = {h.name: h for h in spec.histories()}
    return replace(
        row.rows(same),
        categorical=columns(row.categorical, blank.categorical),
        numeric=columns(row.numeric, blank.numeric),
        dense={n: vector(n) for n in row.dense},
        bags={n: _lists(bag, n, tokens, 0) for n, bag in row.bags.items()},
        sequences={
            n: _lists(events, n, tokens, _older(histories[n], row, given))
            for n, events in row.sequences.items()
        },
    )


def _lists(whole: Jagged, name: str, tokens: Sequence[Token], older: int) -> Jagged:
    """Returns a bag or history for the row itself and for every token that is left out.

    Args:
        whole: of one row.
        name: of the column.
        tokens: one for each row after the first.
        older: events that were given before the first of `whole`.
    """
    places = torch.arange(int(whole.offsets[-1]))
    kept = [places]
    for t in tokens:
        if t.column != name:
            kept.append(places)
        else:
            kept.append(places[:0] if t.event is None else places[places != t.event - older])
    offsets = torch.zeros(len(kept) + 1, dtype=torch.int64)
    torch.cumsum(torch.tensor([len(k) for k in kept]), 0, out=offsets[1:])
    index = torch.cat(kept)
    return Jagged({column: flat[index] for column, flat in whole.values.items()}, offsets)


def _events(history: History, row: Batch) -> int:
    return int(row.sequences[history.name].offsets[-1])


def _older(history: History, row: Batch, given: Given) -> int:
    """Returns how many given events are older than those that are read."""
    raw = given.columns.get(history.events[0].column, (None,))[0]
    return len(raw or ()) - _events(history, row)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return shown(", ".join(_text(v) for v in value[:MOST_INPUT]))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.12g}"
    return shown("empty" if value is None else value)
