"""Arrow bodies: one IPC stream of rows, or two in a row, from whoever sends them.

Nothing about a stream is trusted: compressed buffers are refused before they are read, because a
few bytes may say that they stand for gigabytes; types are held to a short list; and every offset is
checked before a value is looked at.
"""

from __future__ import annotations

import struct
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from fullrank.data.arrow_ipc import is_compressed, messages
from fullrank.errors import RequestError
from fullrank.serve.problem import shown
from fullrank.serve.wire import too_many

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
_MOST_COLUMNS = 10_000
_ENTRY_BYTES = 16  # of an entry of a list, once it is read as text or as a number of 64 bits
_DECODED_BYTES, _DECODED_RATIO = 64 << 20, 4  # what a body may stand for: the larger of the two
_FAILURES = (pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException)


def read_streams(body: bytes, streams: int, max_rows: int) -> list[pl.DataFrame]:
    """Reads a body of Arrow IPC streams.

    Args:
        body: of the request.
        streams: how many stand in it, one after the other.
        max_rows: of each.

    Raises:
        RequestError: the body is broken, compressed, of other types, or too long.
    """
    try:
        ends = _ends(body, streams)
        return [_frame(body[a:b], max_rows) for a, b in zip([0, *ends], ends, strict=False)]
    except (*_FAILURES, struct.error, ValueError, OSError) as cause:
        raise _broken(str(cause).splitlines()[0] if str(cause) else type(cause).__name__) from cause


def write_stream(columns: dict[str, Any], metadata: dict[str, str]) -> bytes:
    """Returns columns of equal length as one IPC stream."""
    table = pa.table(columns).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    whole: bytes = sink.getvalue().to_pybytes()
    return whole


def _ends(body: bytes, streams: int) -> list[int]:
    """Returns where each stream ends, having looked at every message, but not into it."""
    source, ends = pa.BufferReader(body), []
    for _ in range(streams):
        if any(map(is_compressed, messages(source))):
            raise _broken("compressed buffers")
        ends.append(source.tell())
    if source.tell() != len(body):
        raise _broken(f"{len(body) - source.tell():,} bytes after the last stream")
    return ends


def _frame(stream: bytes, max_rows: int) -> pl.DataFrame:
    with pa.ipc.open_stream(stream) as reader:
        names = reader.schema.names
        if len(set(names)) != len(names) or len(names) > _MOST_COLUMNS:
            raise _broken("column names that are not distinct, or too many columns")
        for field in reader.schema:
            if not _is_readable(field.type):
                raise _broken(f"column '{shown(field.name, 40)}' of type {shown(field.type, 40)}")
        batches, rows, decoded = [], 0, 0
        most = max(_DECODED_BYTES, _DECODED_RATIO * len(stream))
        for batch in reader:
            rows += batch.num_rows
            if rows > max_rows:
                raise too_many("the body", f"{rows:,} or more", max_rows)
            batch.validate(full=True)
            for column in batch.columns:
                decoded += _decoded_bytes(column, most)
                if decoded > most:
                    raise _too_much(decoded, most)
            batches.append(batch)
        table = pa.Table.from_batches(batches, reader.schema)
    # Nothing of the sender's schema goes on but names and plain types: names inside of a type may
    # be no text, and a column that says it has no nulls may have some.
    columns = [table.column(i).cast(_plain(field.type)) for i, field in enumerate(table.schema)]
    frame = pl.from_arrow(pa.table(columns, names))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _decoded_bytes(column: pa.Array, most: int) -> int:
    """Returns how much a column takes when it is decoded; from `most` on, at least that.

    A list of nulls may say any length, and a dictionary may name one long text many times.
    """
    t = pa.types
    kind = column.type
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        entries = _ENTRY_BYTES * len(column.values)
        return entries if entries > most else entries + _decoded_bytes(column.values, most)
    if not t.is_dictionary(kind):
        return 0
    lengths = pc.binary_length(column.dictionary).take(column.indices)
    text: int = pc.sum(lengths, min_count=0).as_py()
    return text


def _is_readable(kind: pa.DataType) -> bool:
    t = pa.types
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        return not t.is_nested(kind.value_type) and _is_readable(kind.value_type)
    if t.is_dictionary(kind):
        return bool(t.is_string(kind.value_type) or t.is_large_string(kind.value_type))
    plain = (t.is_boolean, t.is_integer, t.is_floating, t.is_string, t.is_large_string, t.is_null)
    return any(test(kind) for test in plain)


def _plain(kind: pa.DataType) -> pa.DataType:
    t = pa.types
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        return pa.large_list(_plain(kind.value_type))
    return pa.large_string() if t.is_dictionary(kind) else kind


def _too_much(found: int, most: int) -> RequestError:
    return RequestError(
        "the Arrow body stands for too much",
        status=413,
        where="the body",
        found=f"{found:,} bytes or more when it is decoded",
        expected=f"at most {most:,}",
        fix="split the request",
    )


def _broken(found: str) -> RequestError:
    return RequestError(
        "the Arrow body cannot be read",
        status=400,
        where="the body",
        found=shown(found),
        expected="IPC streams of plain columns, not compressed",
        fix="write them with pyarrow.ipc.new_stream and its default options",
    )
