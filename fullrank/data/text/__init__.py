"""Readers of text files that know about bad rows.

A file is read in blocks of whole lines. Bytes are screened with numpy, parsed by Arrow, and checked
with Polars; good rows never meet a Python loop, and every bad row is known by file and line.
"""

from __future__ import annotations

from fullrank.data.text.bad_rows import BadRow, BadRows, Kind
from fullrank.data.text.delimited import read_delimited, read_libfm
from fullrank.data.text.lines import Dialect

__all__ = ["BadRow", "BadRows", "Dialect", "Kind", "read_delimited", "read_libfm"]
