"""A Spec as plain data, so that an artefact carries its own meaning."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from fullrank.config import to_dict
from fullrank.data.spec import Category, Event, History, Number, Spec, Tags, Target, Vector

_KINDS: dict[str, type[Any]] = {
    cls.__name__: cls for cls in (Category, Number, Tags, Vector, History, Target)
}


def spec_to_dict(spec: Spec) -> dict[str, Any]:
    """Returns plain JSON types; each column says its kind."""
    plain: dict[str, Any] = to_dict(spec)
    kinds = [type(c).__name__ for c in spec.columns]
    plain["columns"] = [
        {"kind": kind, **_as_before(c)} for kind, c in zip(kinds, plain["columns"], strict=True)
    ]
    return plain


def spec_from_dict(plain: dict[str, Any]) -> Spec:
    """Builds a spec from what `spec_to_dict` returned; unknown keys raise a TypeError."""
    known = {f.name for f in fields(Spec)}
    rest = {k: v for k, v in plain.items() if k != "columns" and k in known}
    rest["identity"] = tuple(rest["identity"])
    rest["ignore"] = tuple((name, reason) for name, reason in rest["ignore"])
    return Spec(columns=tuple(_column(c) for c in plain["columns"]), **rest)


def _as_before(column: dict[str, Any]) -> dict[str, Any]:
    """Returns a column without `redact` where that says no: runs are keyed by the older text."""
    kept = {k: v for k, v in column.items() if k != "redact" or v}
    if "events" in kept:
        kept["events"] = [_as_before(e) for e in kept["events"]]
    return kept


def _column(plain: dict[str, Any]) -> Any:
    values = dict(plain)
    cls = _KINDS[values.pop("kind")]
    if cls is Vector:
        values["shape"] = tuple(values["shape"])
    if cls is History:
        values["events"] = tuple(Event(**e) for e in values["events"])
    return cls(**values)
