from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from fullrank import errors
from fullrank.errors import FullrankError, nearest

ROOT = Path(__file__).parent.parent
LISTED = {
    name: cls
    for name, cls in vars(errors).items()
    if isinstance(cls, type) and issubclass(cls, FullrankError) and cls is not FullrankError
}


def test_every_error_has_a_section_and_every_section_an_error() -> None:
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs/errors.md").read_text(), re.M)
    assert sorted(sections) == sorted(LISTED)


@pytest.mark.parametrize("name", sorted(LISTED))
def test_every_error_is_raised_somewhere(name: str) -> None:
    sources = [p.read_text() for p in (ROOT / "fullrank").rglob("*.py") if p.name != "errors.py"]
    assert any(re.search(rf"\b{name}\(", text) or f"{name} if" in text for text in sources)


@pytest.mark.parametrize("name", sorted(LISTED))
def test_exit_codes_are_those_in_the_documentation(name: str) -> None:
    text = (ROOT / "docs/errors.md").read_text()
    section = text.split(f"## {name}\n")[1].partition("\n## ")[0]
    assert LISTED[name].exit_code == (2 if "Exit code 2" in section else 1)


def test_the_five_parts_are_all_said() -> None:
    error = errors.LeakError("a", where="b", found="c", expected="d", fix="e")
    for part in ("a", "b", "c", "d", "e"):
        assert part in str(error)
    assert list(error.to_dict().values()) == ["LeakError", "a", "b", "c", "d", "e"]


def test_nearest_suggests_or_lists() -> None:
    assert nearest("epoch", ["epochs", "seed"]) == "did you mean 'epochs'?"
    assert nearest("zzz", ["b", "a"]) == "use one of: a, b"


def test_nothing_unpickles_or_evaluates() -> None:
    """A loaded file is data: no module of ours may execute what it reads."""
    for path in (ROOT / "fullrank").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {n.split(".")[0] for n in names} & {"pickle", "dill", "joblib"}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "torch.load"), f"{path}:{node.lineno}"
