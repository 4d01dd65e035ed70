"""Wire: the bodies of requests, as types made from the spec of an artefact.

JSON is decoded straight into these types, so that a wrong type, a missing or an unknown field, or
a list that is too long is found while reading, and named with its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta

from fullrank.data.spec import Category, Column, History, Number, Spec, Tags, Target, Vector
from fullrank.errors import RequestError, nearest
from fullrank.serve.problem import MOST_INPUT, shown
from fullrank.serve.values import Values

Scalar = str | int | float | bool | None
Micros = Annotated[int, Meta(ge=0, le=10**15)]  # a thousand times as much still fits 64 bits
Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


@dataclass(frozen=True)
class Given:
    """Raw columns of a request.

    Args:
        columns: raw column -> B values; a column that no row has is absent.
        rows: B.
    """

    columns: dict[str, Values]
    rows: int


@dataclass(frozen=True)
class Sides:
    """Who gives which column of the spec when candidates are ranked.

    Args:
        user: given once: the user's properties and the histories.
        item: given by every candidate.
        context: given once, or by every candidate.
    """

    user: tuple[Column, ...]
    item: tuple[Column, ...]
    context: tuple[Column, ...]

    @classmethod
    def of(cls, spec: Spec) -> Sides:
        """Sorts the columns of a spec; the judged item is the candidate's whatever its side."""
        parts: dict[str, list[Column]] = {"user": [], "item": [], "context": []}
        for c in spec.columns:
            if isinstance(c, History):
                parts["user"].append(c)
            elif not isinstance(c, Target):
                parts["item" if c.name == spec.item else c.side].append(c)
        return cls(*(tuple(parts[side]) for side in ("user", "item", "context")))


class Wire:
    """Reads JSON bodies for one spec.

    Args:
        spec: of the artefact.
        max_rows: of one request.
    """

    def __init__(self, spec: Spec, max_rows: int) -> None:
        self.spec, self.max_rows, self.sides = spec, max_rows, Sides.of(spec)
        self.known = sorted(spec.accounted())
        self.types = {n: t for c in spec.columns for n, t in _column_types(c)}
        if spec.time:
            self.types.setdefault(spec.time, Whole | None)
        self._skipped = [n for n in self.known if n not in self.types]
        sides = self.sides
        self.row = self._struct("Row", (*sides.user, *sides.item, *sides.context))
        self.user = self._struct("User", sides.user, sides.context)
        self.candidate = self._struct("Candidate", sides.item, sides.context)
        count = Meta(min_length=1, max_length=max_rows)
        self._rows = Annotated[list[self.row], count]  # type: ignore[name-defined]
        self._candidates = Annotated[list[self.candidate], count]  # type: ignore[name-defined]
        score = _body("ScoreRequest", [("rows", self._rows)])
        user: tuple[Any, ...] = ("user", self.user)
        if not any(f.required for f in msgspec.structs.fields(self.user)):
            user = ("user", self.user, msgspec.field(default_factory=self.user))
        rank = _body("RankRequest", [user, ("candidates", self._candidates)])
        bids = ("bids_micros", Annotated[list[Micros], count])
        auction = _body("AuctionRequest", [user, ("candidates", self._candidates), bids])
        self._score, self._rank = msgspec.json.Decoder(score), msgspec.json.Decoder(rank)
        self._auction = msgspec.json.Decoder(auction)
        self._user = msgspec.json.Decoder(_body("RetrieveRequest", [user]))
        self._explain = msgspec.json.Decoder(_body("ExplainRequest", [("row", self.row)]))

    def _struct(self, name: str, own: Sequence[Column], free: Sequence[Column] = ()) -> Any:
        """Returns a type with the raw columns of `own`, and those of `free` as far as given."""
        may = {n: self._may_be_empty(n) for c in own for n, _ in _column_types(c)}
        may |= {n: True for c in free for n, _ in _column_types(c)}
        if self.spec.time and name != "Candidate":
            may.setdefault(self.spec.time, True)
        fields: list[Any] = []
        for n, optional in may.items():
            kind = self.types[n]
            fields.append((kind | msgspec.UnsetType, UNSET) if optional else (kind,))
        # What the spec knows and no score depends on may stand in a row, and is skipped.
        fields += [(msgspec.Raw, UNSET)] * len(self._skipped)
        return msgspec.defstruct(
            name,
            [(f"c{i}", *field) for i, field in enumerate(fields)],
            rename={f"c{i}": n for i, n in enumerate([*may, *self._skipped])},
            forbid_unknown_fields=True,
            kw_only=True,
            gc=False,
            namespace={"raw_names": tuple(may)},
        )

    def score_request(self, body: bytes) -> Given:
        """Reads {"rows": [...]}.

        Raises:
            RequestError: the body is no JSON, or not of this form; status 400, 413 or 422.
        """
        return self._given(self._decoded(self._score, body).rows, "rows")

    def explain_request(self, body: bytes) -> Given:
        """Reads {"row": {...}}, one row as `score_request` reads many.

        Raises:
            RequestError: the body is no JSON, or not of this form; status 400, 413 or 422.
        """
        return self._given([self._decoded(self._explain, body).row], "row")

    def rank_request(self, body: bytes) -> tuple[Given, Given]:
        """Reads {"user": {...}, "candidates": [...]}; each context column is on one side only.

        Raises:
            RequestError: the body is no JSON, or not of this form; status 400, 413 or 422.
        """
        request = self._decoded(self._rank, body)
        return self._two_sides([request.user], request.candidates)

    def auction_request(self, body: bytes) -> tuple[Given, Given, list[int]]:
        """Reads a ranking with {"bids_micros": [...]}, one for each candidate.

        Raises:
            RequestError: the body is no JSON, or not of this form; status 400, 413 or 422.
        """
        request = self._decoded(self._auction, body)
        return *self._two_sides([request.user], request.candidates), request.bids_micros

    def user_request(self, body: bytes) -> Given:
        """Reads {"user": {...}}, with the context, to which items are to be found.

        Raises:
            RequestError: the body is no JSON, or not of this form; status 400, 413 or 422.
        """
        user = self._given([self._decoded(self._user, body).user], "user")
        self.require_once(set(user.columns), set())
        return user

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> Given:
        """Returns rows that are Python objects already, held to the same types."""
        return self._given(self._converted(self._read(rows), self._rows, "rows"), "rows")

    def rank(
        self, user: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]
    ) -> tuple[Given, Given]:
        """Returns user and candidates that are Python objects already, as `rank_request` does."""
        one = self._converted(self._read([user])[0], self.user, "user")
        many = self._converted(self._read(candidates), self._candidates, "candidates")
        return self._two_sides([one], many)

    def _read(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Leaves out what the spec knows and no score depends on."""
        return [{n: v for n, v in row.items() if n not in self._skipped} for row in rows]

    def _two_sides(self, user: Sequence[Any], candidates: Sequence[Any]) -> tuple[Given, Given]:
        one, many = self._given(user, "user"), self._given(candidates, "candidates")
        self.require_once(set(one.columns), set(many.columns))
        return one, many

    def require_once(self, user: set[str], candidates: set[str]) -> None:
        """Refuses a context column that both sides give, or neither.

        Raises:
            RequestError: one of them, by name.
        """
        for c in self.sides.context:
            for name, _ in _column_types(c):
                if name in user and name in candidates:
                    raise RequestError(
                        "a field is given twice",
                        where=f"user.{name} and candidates[].{name}",
                        found="both",
                        expected="the user or every candidate to give it",
                        fix="leave one of them out",
                    )
                if not self._may_be_empty(name) and name not in user and name not in candidates:
                    raise _missing(name, "user")

    def _decoded(self, decoder: Any, body: bytes) -> Any:
        try:
            return decoder.decode(body)
        except msgspec.ValidationError as cause:
            raise self._refused(str(cause)) from cause
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as cause:
            raise broken_json(cause) from cause

    def _converted(self, value: Any, kind: Any, where: str) -> Any:
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as cause:
            raise self._refused(str(cause).replace("`$", f"`$.{where}", 1)) from cause

    def _given(self, rows: Sequence[Any], where: str) -> Given:
        """Takes rows apart into columns; a field that only some of the rows have is refused."""
        names = rows[0].raw_names
        columns: dict[str, Values] = {}
        values_of = zip(*map(msgspec.structs.astuple, rows), strict=True)
        for name, values in zip(names, values_of, strict=False):  # skipped fields come last
            absent = values.count(UNSET)
            if absent == len(values):
                continue
            if absent:
                if not self._may_be_empty(name):
                    raise _missing(name, f"{where}[{values.index(UNSET)}]")
                values = tuple(None if v is UNSET else v for v in values)
            columns[name] = values
        return Given(columns, len(rows))

    def _may_be_empty(self, name: str) -> bool:
        return self.spec.raw_columns(labels=False).get(name, True)

    def _refused(self, said: str) -> RequestError:
        """Returns what a decoder says about a value, in five parts."""
        message, _, place = said.rpartition(" - at `$")
        if not message:
            message, place = said, ""
        where = shown(place.rstrip("`").lstrip(".") or "the body")
        _, _, name = message[:1000].partition("unknown field `")
        if name:
            return self.unknown(name.rstrip("`")[:MOST_INPUT], where)
        _, _, name = message.partition("missing required field `")
        if name:
            return _missing(name.rstrip("`"), where)
        if f"length <= {self.max_rows}" in message:
            return too_many(where, f"more than {self.max_rows:,}", self.max_rows)
        expected, _, found = message.removeprefix("Expected ").partition(", got ")
        if "out of range" in message:
            expected, found = "a smaller number", message
        return RequestError(
            "a value cannot be read",
            where=where,
            found=shown(found.replace("`", "") or "another one"),
            expected=expected.replace("`", ""),
            fix="correct the value; see GET /v1/model",
        )

    def unknown(self, name: str, where: str) -> RequestError:
        """Returns that a field is not known, or not known here."""
        what, fix = "a field is not known", nearest(name, self.known)
        if name in self.types:
            what = "a field stands in the wrong place"
            fix = "candidates give properties of items, the user gives the others"
        return RequestError(
            what, where=where, found=shown(name), expected="the fields of GET /v1/model", fix=fix
        )


def broken_json(cause: Exception) -> RequestError:
    """Returns why a body is no JSON."""
    if isinstance(cause, RecursionError):
        found = "lists or objects nested too deeply"
    elif isinstance(cause, UnicodeDecodeError):
        found = f"no UTF-8: {cause.reason}"
    else:
        found = str(cause)
    return RequestError(
        "the body cannot be read", status=400, where="the body", found=shown(found),
        expected="one JSON object in UTF-8", fix="send what GET /v1/model shows as an example",
    )  # fmt: skip


def too_many(where: str, found: str, most: int) -> RequestError:
    """Returns that a request has too many rows."""
    return RequestError(
        "a request has too many rows", status=413, where=where, found=f"{found} rows",
        expected=f"at most {most:,} rows", fix="split the request, or serve with --max-rows",
    )  # fmt: skip


def _missing(name: str, where: str) -> RequestError:
    return RequestError(
        "a field is missing", where=where, found=f"no '{name}'",
        expected=f"'{name}'; null if it is not known", fix="add it",
    )  # fmt: skip


def _body(name: str, fields: list[Any]) -> Any:
    return msgspec.defstruct(name, fields, forbid_unknown_fields=True, kw_only=True)


def _column_types(column: Column) -> list[tuple[str, Any]]:
    """Returns the raw columns that a column of the spec reads, with their types in JSON."""
    match column:
        case Category():
            return [(column.name, Scalar)]
        case Number():
            return [(column.name, float | None)]
        case Tags():
            return [(column.name, list[Scalar] | str | None)]
        case Vector():
            width = 1
            for n in column.shape:
                width *= n
            length = Meta(min_length=width, max_length=width)
            return [(column.name, Annotated[list[float], length] | None)]
        case History():
            return [
                (e.column, list[Scalar] | None if e.table else list[Whole | None] | None)
                for e in column.events
            ]
        case Target():
            return []
