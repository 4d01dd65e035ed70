"""Prints lines per folder, and the files and functions past the house limits.

A model file has up to 250 lines, any other up to 400, a function up to 50. Past a limit, the first
comment of the file (or a comment on the line of the function) says why; one that does not fails.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent / "fullrank"


def main() -> int:
    """Prints the table; returns 1 where a limit is passed without a reason."""
    folders: Counter[str] = Counter()
    without_reason = []
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text()
        lines = text.splitlines()
        folders[str(path.parent.relative_to(ROOT.parent))] += len(lines)
        limit = 250 if path.parent.name == "models" else 400
        name = path.relative_to(ROOT.parent)
        if len(lines) > limit:
            reason = next((line for line in lines if line.startswith("# ")), "")
            print(f"{name}: {len(lines)} lines, {reason or 'no reason given'}")
            if not reason:
                without_reason.append(str(name))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and _code_lines(node) > 50:
                reason = lines[node.lineno - 1].partition("#")[2]
                print(f"{name}:{node.lineno} {node.name}: {_code_lines(node)} lines,{reason}")
                if not reason:
                    without_reason.append(f"{name}:{node.lineno}")
    for folder, count in sorted(folders.items()):
        print(f"{count:6,}  {folder}")
    print(f"{sum(folders.values()):6,}  in all")
    if without_reason:
        print("past the limit without a reason: " + ", ".join(without_reason))
    return 1 if without_reason else 0


def _code_lines(node: ast.FunctionDef) -> int:
    """Lines of a function, its docstring left out."""
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node):
        first = node.body[0]
        length -= (first.end_lineno or first.lineno) - first.lineno + 1
    return length


if __name__ == "__main__":
    sys.exit(main())
