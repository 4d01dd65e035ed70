"""Arrow IPC from whoever wrote it: what its messages claim is looked at before anything is read.

A compressed buffer of a few bytes may say that it stands for gigabytes. pyarrow and polars believe
it; here the claims of a message are added up first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

_RECORD_BATCH, _DICTIONARY_BATCH = 3, 2  # of MessageHeader in Arrow's Message.fbs
_BUFFERS, _COMPRESSION = 2, 3  # fields of RecordBatch
_DICTIONARIES, _RECORD_BATCHES = 2, 3  # fields of Footer in Arrow's File.fbs
_ENDING = 10  # bytes after the footer of a file


def messages(source: Any) -> Iterator[pa.Message]:
    """Yields the messages of one stream, without looking into them.

    Args:
        source: a pyarrow file; it is left at the end of the stream.

    Raises:
        pa.ArrowInvalid: what is there is no stream.
    """
    reader = pa.ipc.MessageReader.open_stream(source)
    while True:
        try:
            yield reader.read_next_message()
        except StopIteration:
            return


def file_messages(content: bytes) -> Iterator[pa.Message]:
    """Yields the record batches of an IPC file, as its footer lists them.

    Args:
        content: of the file.

    Raises:
        ValueError, OSError, EOFError, struct.error: it is no such file, or has dictionaries.
    """
    end = len(content) - _ENDING  # of the footer, which its own length and "ARROW1" follow
    size = struct.unpack_from("<i", content, end)[0] if end > 0 else 0
    if not 0 < size <= end:
        raise ValueError("no footer")
    footer = content[end - size : end]
    root = struct.unpack_from("<I", footer, 0)[0]
    for number in (_DICTIONARIES, _RECORD_BATCHES):
        at = _field(footer, root, number)
        start = _follow(footer, at) if at else 0
        blocks = struct.unpack_from("<I", footer, start)[0] if at else 0
        if number == _DICTIONARIES and blocks:
            raise ValueError("dictionaries")
        for i in range(blocks):
            offset, head, body = struct.unpack_from("<qi4xq", footer, start + 4 + 24 * i)
            if min(offset, head, body) < 0:
                raise ValueError("a batch that lies outside of the file")
            yield pa.ipc.read_message(content[offset : offset + head + body])


def is_compressed(message: pa.Message) -> bool:
    """Tells whether the buffers of a message are compressed.

    Raises:
        ValueError, struct.error: it points outside of itself.
    """
    text = message.metadata.to_pybytes()
    batch = _batch(text)
    return batch is not None and _field(text, batch, _COMPRESSION) != 0


def decoded_bytes(message: pa.Message) -> int:
    """Returns how large a message says that its buffers are when they are not compressed.

    Raises:
        ValueError, struct.error: it points outside of itself.
    """
    text, body = message.metadata.to_pybytes(), memoryview(message.body or b"")
    batch = _batch(text)
    at = _field(text, batch, _BUFFERS) if batch is not None else 0
    if batch is None or not at:
        return 0
    total, start = 0, _follow(text, at)
    compressed = _field(text, batch, _COMPRESSION) != 0
    for i in range(struct.unpack_from("<I", text, start)[0]):
        offset, length = struct.unpack_from("<qq", text, start + 4 + 16 * i)
        if offset < 0 or length < 0 or offset + length > len(body):
            raise ValueError("a buffer that lies outside of its message")
        size = length
        if compressed and length:  # starts with its true size; -1 says that it was left as it is
            size = struct.unpack_from("<q", body, offset)[0]
            if size < -1:
                raise ValueError(f"a buffer of {size:,} bytes")
        total += length if size == -1 else size
    return total


def _batch(text: bytes) -> int | None:
    """Returns where the RecordBatch of a message lies; None for a schema.

    Message: field 1 is the type of the header, field 2 the header. DictionaryBatch: field 1 is a
    RecordBatch. RecordBatch: field 2 is the vector of buffers, field 3 the compression, absent
    where there is none.
    """
    root = struct.unpack_from("<I", text, 0)[0]
    kind_at, header = _field(text, root, 1), _field(text, root, 2)
    if not kind_at or not header:
        return None
    kind, table = text[kind_at], _follow(text, header)
    if kind == _DICTIONARY_BATCH:
        data = _field(text, table, 1)
        return _follow(text, data) if data else None
    return table if kind == _RECORD_BATCH else None


def _field(text: bytes, table: int, number: int) -> int:
    """Returns where a field of a flatbuffer table lies, or 0 where it is absent."""
    shared = table - struct.unpack_from("<i", text, table)[0]
    if shared < 0:
        raise ValueError("a message that points outside of itself")
    size = struct.unpack_from("<H", text, shared)[0]
    place = 4 + 2 * number
    if place + 2 > size:
        return 0
    offset: int = struct.unpack_from("<H", text, shared + place)[0]
    return table + offset if offset else 0


def _follow(text: bytes, at: int) -> int:
    place: int = at + struct.unpack_from("<I", text, at)[0]
    return place
