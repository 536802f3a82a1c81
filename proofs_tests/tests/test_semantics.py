"""The semantics cards say what the specification and the CPU kernels do, row by row."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernelproof.kernels import backend
from kernelproof.spec import OPERATORS, OPS

DOCS = Path(__file__).parents[2] / "docs"


def load() -> Any:
    """The script docs/semantics.py as a module; its peers are imported only when they are measured."""
    specification = importlib.util.spec_from_file_location("semantics", DOCS / "semantics.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def read(page: str) -> list[tuple[str, ...]]:
    """Operator, case, call and the kernelproof column of every line of every card."""
    rows: list[tuple[str, ...]] = []
    for card in page.split("\n## ")[1:]:
        lines = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("|")]
        rows += [(card.partition("\n")[0], *line[:3]) for line in lines[2:]]
    return rows


semantics = load()
PAGE = read((DOCS / "semantics.md").read_text())
CARDS = list(zip(semantics.ROWS, PAGE, strict=False))  # Another number of rows is the first test's to tell.


def named(cards: list[tuple[Any, Any]]) -> list[Any]:
    return [pytest.param(row, line, id=f"{row.operator}: {row.case}") for row, line in cards]


def computes_in_integers(row: Any) -> bool:
    arrays = [value for name, value in row.arguments.items() if name != "target" and hasattr(value, "dtype")]
    return any(array.dtype.kind == "i" for array in arrays)


def test_the_page_has_the_rows_of_the_script() -> None:
    assert [line[:3] for line in PAGE] == [
        (row.forward, row.label, f"`{semantics.call(row)}`") for row in semantics.ROWS
    ], "run: python docs/semantics.py"


def test_every_operator_has_a_card_and_every_gradient_a_row() -> None:
    assert list(dict.fromkeys(line[0] for line in PAGE)) == list(OPS)
    assert {row.operator for row in semantics.ROWS} == set(OPERATORS)


@pytest.mark.parametrize(("row", "line"), named(CARDS))
def test_the_specification_does_what_its_card_says(row: Any, line: tuple[str, ...]) -> None:
    assert semantics.ours(row) + " (open)" * row.open == line[3]


@pytest.mark.parametrize(("row", "line"), named([card for card in CARDS if not card[0].open]))
def test_the_cpu_kernels_do_what_the_card_says(row: Any, line: tuple[str, ...]) -> None:
    assert semantics.ours(row, backend("cpu")) == ("DtypeError" if computes_in_integers(row) else line[3])


def test_the_page_tells_apart_what_equals_as_a_number() -> None:
    shown = [semantics.text(np.float32(number)) for number in (0.0, -0.0, np.nan, np.inf, -np.inf, 2.0**-149)]
    assert len(set(shown)) == len(shown)


def test_the_page_is_not_written_where_a_peer_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = semantics.PAGE.read_bytes()
    monkeypatch.setattr(semantics, "PACKAGES", (*semantics.PACKAGES, "no_such_peer"))
    with pytest.raises(SystemExit, match=r"pip install .*no_such_peer"):
        semantics.main()
    assert semantics.PAGE.read_bytes() == before
