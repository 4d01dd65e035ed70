"""A Spec as plain data, so that an artefact carries its own meaning."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from fullrank.config import from_dict, to_dict
from fullrank.data.spec import Category, History, Number, Spec, Tags, Target, Vector

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
    """Builds a spec from what `spec_to_dict` returned.

    Raises:
        ConfigError, KeyError, TypeError, ValueError: a key of a column is unknown, one is absent,
            or a value has the wrong type.
    """
    known = {f.name for f in fields(Spec)} - {"columns", "identity", "ignore"}
    return Spec(
        columns=tuple(map(_column, plain["columns"])),
        identity=tuple(map(_text, plain["identity"])),
        ignore=tuple((_text(name), _text(reason)) for name, reason in plain["ignore"]),
        **{k: _text(v) for k, v in plain.items() if k in known},
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} where text belongs")
    return value


def _as_before(column: dict[str, Any]) -> dict[str, Any]:
    """Returns a column without `redact` where that says no: runs are keyed by the older text."""
    kept = {k: v for k, v in column.items() if k != "redact" or v}
    if "events" in kept:
        kept["events"] = [_as_before(e) for e in kept["events"]]
    return kept


def _column(plain: dict[str, Any]) -> Any:
    values = dict(plain)
    return from_dict(_KINDS[values.pop("kind")], values, "column")
