from __future__ import annotations

import json

import pytest

from fullrank.errors import SchemaError
from fullrank.schema import (
    Bag,
    Categorical,
    Dense,
    Label,
    Numeric,
    Schema,
    Sequence,
    Table,
)

WHOLE = Schema(
    tables=(Table("user", 5), Table("item", 9, grows=True)),
    fields=(
        Categorical("user", "user", "user"),
        Numeric("age", "user"),
        Categorical("item", "item", "item"),
        Bag("tags", "item", "item", 4),
        Dense("vector", (2, 3), "item"),
    ),
    sequences=(Sequence("past", (("item", "item"), ("time", None)), 10),),
    labels=(Label("click"), Label("buy", "click")),
    item="item",
    group="user",
)


def test_survives_json() -> None:
    back = Schema.from_dict(json.loads(json.dumps(WHOLE.to_dict())))
    assert back == WHOLE
    assert back.fingerprint() == WHOLE.fingerprint()


def test_every_part_changes_the_fingerprint() -> None:
    plain = WHOLE.to_dict()
    seen = {WHOLE.fingerprint()}
    for change in (
        {"tables": [["user", 6, False], ["item", 9, True]]},
        {"tables": [["user", 5, False], ["item", 9, False]]},
        {"fields": plain["fields"][:-1]},
        {"sequences": []},
        {"labels": [["click", "impression"]]},
        {"item": None},
        {"group": None},
    ):
        seen.add(Schema.from_dict(plain | change).fingerprint())
    assert len(seen) == 8


def test_select_keeps_order_and_drops_unused_tables() -> None:
    part = WHOLE.select(["age", "user"])
    assert [t.name for t in part.tables] == ["user"]
    assert part.item is None
    assert part.labels == WHOLE.labels


@pytest.mark.parametrize(
    ("broken", "names"),
    [
        ({"fields": (Categorical("a", "nowhere"),)}, ("'a'", "nowhere")),
        ({"fields": (Numeric("a"), Numeric("a"))}, ("a",)),
        ({"tables": (Table("t", 0),)}, ("'t'", "size 0")),
        ({"item": "b", "fields": (Numeric("a"),)}, ("'b'",)),
        ({"sequences": (Sequence("s", (("c", "gone"),), 3),)}, ("s.c", "gone")),
    ],
)
def test_refuses_what_contradicts_itself(broken: dict, names: tuple[str, ...]) -> None:
    with pytest.raises(SchemaError) as caught:
        Schema(**broken)
    for name in names:
        assert name in str(caught.value)


def test_suggests_the_nearest_field() -> None:
    with pytest.raises(SchemaError, match="did you mean 'user'"):
        WHOLE.field("usr")
