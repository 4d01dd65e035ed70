"""Configuration: frozen dataclasses to and from plain data; typed, strict, with suggestions."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from fullrank.errors import ConfigError, nearest

T = TypeVar("T")


def to_dict(config: Any) -> Any:
    """Returns plain JSON types for a dataclass, recursively; `from_dict` is the inverse."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple | list):
        return [to_dict(value) for value in config]
    if isinstance(config, dict):
        return {key: to_dict(value) for key, value in config.items()}
    return config


def from_dict(cls: type[T], data: Any, where: str = "config") -> T:
    """Builds a dataclass from plain data, refusing unknown keys and wrong types.

    Raises:
        ConfigError: a key is unknown (the nearest one is named) or a value has the wrong type.
    """
    if not isinstance(data, dict):
        raise _wrong(where, data, f"a mapping for {cls.__name__}")
    kinds = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            raise _unknown(f"{where}.{key}", key, known)
    values = {key: _checked(kinds[key], value, f"{where}.{key}") for key, value in data.items()}
    try:
        return cls(**values)
    except TypeError as cause:  # a field without a default is absent
        raise _wrong(where, data, f"every required key of {cls.__name__} ({cause})") from cause


def override(config: T, assignment: str) -> T:
    """Returns the config with one value changed, such as `train.epochs=2`.

    Args:
        config: a dataclass, perhaps nested.
        assignment: dotted path, "=", and a value written as in Python or JSON: `3`, `1e-3`,
            `true`, `none`, `(400,400)`, `adam`.

    Raises:
        ConfigError: the path is unknown, or the value has the wrong type.
    """
    path, sign, text = assignment.partition("=")
    if not sign:
        raise ConfigError(
            "a setting has no value",
            where=f"--set {assignment}",
            found=assignment,
            expected="KEY=VALUE, such as train.epochs=2",
            fix="add '=' and the value",
        )
    changed: T = _replaced(config, path.strip().split("."), text.strip(), path.strip())
    return changed


def _replaced(config: Any, path: list[str], text: str, whole: str) -> Any:
    head, *rest = path
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise _wrong(whole, text, "a path that ends at a single setting")
    known = {f.name for f in dataclasses.fields(config)}
    if head not in known:
        raise _unknown(whole, head, known)
    if rest:
        value = _replaced(getattr(config, head), rest, text, whole)
    else:
        kind = typing.get_type_hints(type(config))[head]
        if kind is Any:
            kind = type(getattr(config, head))
        value = _parsed(kind, text, whole)
    return dataclasses.replace(config, **{head: value})


def _parsed(kind: Any, text: str, where: str) -> Any:
    """Reads text as a type, without evaluating anything."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if type(None) in args and text.lower() in ("none", "null"):
            return None
        failures: ConfigError | None = None
        for option in (a for a in args if a is not type(None)):
            try:
                return _parsed(option, text, where)
            except ConfigError as error:
                failures = error
        assert failures is not None
        raise failures
    if origin is tuple:
        parts = [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
        inner = [args[0]] * len(parts) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(inner) != len(parts):
            raise _wrong(where, text, f"{len(inner)} values separated by commas")
        return tuple(
            _parsed(k, part, f"{where}[{i}]")
            for i, (k, part) in enumerate(zip(inner, parts, strict=True))
        )
    if origin is typing.Literal:
        for option in args:
            if text == str(option):
                return option
        raise _wrong(
            where, text, "one of: " + ", ".join(map(str, args)), nearest(text, map(str, args))
        )
    if kind is bool:
        lowered = text.lower()
        if lowered in ("true", "false", "1", "0", "yes", "no", "on", "off"):
            return lowered in ("true", "1", "yes", "on")
        raise _wrong(where, text, "true or false")
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise _wrong(where, text, f"a number of type {kind.__name__}") from None
    if kind is str:
        return text
    raise _wrong(where, text, f"a setting that can be written as text; this one is a {kind}")


def _checked(kind: Any, value: Any, where: str) -> Any:
    """Returns a plain value as the type that a dataclass field declares."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        failures: ConfigError | None = None
        for option in (a for a in args if a is not type(None)):
            try:
                return _checked(option, value, where)
            except ConfigError as error:
                failures = error
        assert failures is not None
        raise failures
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return value if isinstance(value, kind) else from_dict(kind, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(where, value, "a list")
        inner = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise _wrong(where, value, f"{len(inner)} values")
        return tuple(
            _checked(k, v, f"{where}[{i}]")
            for i, (k, v) in enumerate(zip(inner, value, strict=True))
        )
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(where, value, "a mapping")
        return {k: _checked(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if origin is typing.Literal:
        if value not in args:
            options = [str(a) for a in args]
            raise _wrong(
                where, value, "one of: " + ", ".join(options), nearest(str(value), options)
            )
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (
        isinstance(kind, type)
        and isinstance(value, kind)
        and not (kind is not bool and isinstance(value, bool))
    ):
        return value
    raise _wrong(where, value, f"a value of type {getattr(kind, '__name__', kind)}")


def _unknown(where: str, key: str, known: set[str]) -> ConfigError:
    return ConfigError(
        "a setting does not exist",
        where=where,
        found=f"'{key}'",
        expected="one of: " + ", ".join(sorted(known)),
        fix=nearest(key, known),
    )


def _wrong(where: str, found: Any, expected: str, fix: str = "correct the value") -> ConfigError:
    return ConfigError(
        "a setting has a value that cannot be used",
        where=where,
        found=repr(found),
        expected=expected,
        fix=fix,
    )


def require(condition: bool, *, where: str, found: object, expected: str, fix: str) -> None:
    """Raises a ConfigError unless the condition holds; for checks that span several settings."""
    if not condition:
        raise ConfigError(
            "a setting has an impossible value",
            where=where,
            found=str(found),
            expected=expected,
            fix=fix,
        )


def require_positive(config: object, *names: str) -> None:
    """Raises a ConfigError unless each setting, and each member of a tuple, is above zero."""
    for name in names:
        value = getattr(config, name)
        members = value if isinstance(value, tuple) else (value,)
        require(
            all(member > 0 for member in members),
            where=f"{type(config).__qualname__}.{name}",
            found=value,
            expected="above zero",
            fix="raise it",
        )


def require_between(config: object, low: float, high: float, *names: str) -> None:
    """Raises a ConfigError unless low <= value <= high for each setting."""
    for name in names:
        value = getattr(config, name)
        require(
            low <= value <= high,
            where=f"{type(config).__qualname__}.{name}",
            found=value,
            expected=f"between {low} and {high}",
            fix="move it into the interval",
        )


def refuse_idle(
    config: Any, read_only_with: Sequence[tuple[str, Sequence[Any], Sequence[str]]]
) -> None:
    """Raises a ConfigError if a setting was changed that another one leaves without effect.

    Args:
        config: a dataclass whose settings all have defaults.
        read_only_with: (switch, values, names): the settings `names` are read only while `switch`
            has one of `values`.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    for switch, values, names in read_only_with:
        other = getattr(config, switch)
        for name in names:
            value = getattr(config, name)
            require(
                value == defaults[name] or other in values,
                where=f"{type(config).__qualname__}.{name}",
                found=f"{value!r} with {switch}={other!r}",
                expected=f"{defaults[name]!r}: it is read only with {switch} "
                + " or ".join(map(str, values)),
                fix=f"leave {name} out, or set {switch}={values[0]}",
            )
