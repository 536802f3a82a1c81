"""A report as one HTML page that loads nothing: matrix, failures with their code, distributions, coverage."""

import math
import shlex
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import jinja2

from kernelproof.proofs.judging import AXES
from kernelproof.proofs.render import facts, why_unchecked
from kernelproof.proofs.report import Report, Result, reproduction, smallest_case, wider

MARKS = {"proven": "✓", "refuted": "✕", "unsupported": "–", "vacuous": "○"}  # noqa: RUF001 - a dash, meant

TONES = {"proven": "good", "refuted": "bad", "unsupported": "warn", "vacuous": "warn"}

HEATS = 5
"""Steps of colour from the smallest error to the largest."""


def report_page(report: Report) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kernelproof", "."), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    order = [*report.operators, *(result.operator for result in report.theorems)]
    results = sorted(report.results, key=lambda result: order.index(result.operator))
    numbered = list(enumerate(results))
    return environment.get_template("report.html").render(
        report=report,
        marks=MARKS,
        tones=TONES,
        matrix=matrix(report),
        operators=[(name, list(rows)) for name, rows in groupby(numbered, lambda each: each[1].operator)],
        numbers={(result.operator, result.law): number for number, result in numbered},
        levels=sorted({result.level for result in results}),
        verdicts=[verdict for verdict in MARKS if verdict in {result.verdict for result in results}],
        statements=sorted({(result.level, result.law, result.statement) for result in results}),
        failures=[(result, reproduction(result, report), heat_map(result)) for result in report.shown],
        histograms=[(result, histogram(result.ratios)) for result in results if sum(result.ratios)],
        wider_ones=[result for result in results if result.rounded_as],
        wider=wider,
        coverage=[
            (operator, report.hit(operator), report.hit(operator, "L1"))
            for operator in report.operators
            if report.hit(operator)
        ],
        facts=facts(report),
        command=command(report),
        why_unchecked=why_unchecked,
        smallest_case=smallest_case,
    )


def matrix(report: Report) -> dict[str, Any]:
    """The table operator x law: the columns by level, and each operator's result in every column or None."""
    columns = sorted({(result.level, result.law) for result in report.laws})
    held = {(result.operator, result.law): result for result in report.laws}
    return {
        "levels": [(level, len(list(laws))) for level, laws in groupby(columns, lambda column: column[0])],
        "starts": [place == 0 or columns[place - 1][0] != level for place, (level, _) in enumerate(columns)],
        "rows": [(operator, [held.get((operator, law)) for _, law in columns]) for operator in report.operators],
    }


def histogram(counts: Sequence[int], width: int = 100, height: int = 40) -> str:
    """Bars as the path of an SVG of this size; a problem in a class of its own still shows."""
    step, most = width / len(counts), max(counts)
    bars = ((i * step, max(1.5, height * count / most)) for i, count in enumerate(counts) if count)
    return "".join(f"M{left:g} {height}v{-tall:.4g}h{step * 0.9:g}v{tall:.4g}z" for left, tall in bars)


def heat_map(result: Result) -> dict[str, Any] | None:
    """Where the result is wrong: a tile for each image and channel, its wrong elements in steps of their error."""
    differences = result.failure and result.failure.differences
    if not differences:
        return None
    rows, columns = (1, 1, *differences.shape)[-2:]
    letters = AXES.get(result.operator, "")
    letters = letters if len(letters) == len(differences.shape) else ""
    finite = [error for error in differences.errors if 0 < error < math.inf]
    if finite and max(finite) < 1.01 * min(finite):
        finite = [max(finite)]  # Rounding alone sets them apart.
    tiles: dict[tuple[int, ...], dict[int, str]] = {}
    for index, error in zip(differences.indices, differences.errors, strict=True):
        row, column = (0, 0, *index)[-2:]
        steps = tiles.setdefault(index[:-2], {})
        heat = _heat(error, finite)
        steps[heat] = steps.get(heat, "") + f"M{column} {row}h1v1h-1z"
    names = [f"{letter} = " for letter in letters[:-2]]
    return {
        "rows": rows,
        "columns": columns,
        "tiles": [
            (", ".join(name + str(at) for name, at in zip(names or [""] * len(where), where, strict=True)), steps)
            for where, steps in tiles.items()
        ],
        "right": math.prod(differences.shape[:-2]) - len(tiles),
        "down": letters[-2:-1],
        "across": letters[-1:],
        "least": min(finite, default=None),
        "most": max(finite, default=None),
        "not_finite": any(not math.isfinite(error) for error in differences.errors),
        "shown": len(differences.indices),
        "count": differences.count,
        "size": math.prod(differences.shape),
    }


def _heat(error: float, finite: Sequence[float]) -> int:
    """0 for an error that is no number, else a step on a logarithmic scale from the smallest to the largest."""
    if not math.isfinite(error):
        return 0
    least, most = math.log(min(finite, default=1)), math.log(max(finite, default=1))
    if least == most:
        return HEATS
    return 1 + min(HEATS - 1, int(HEATS * (math.log(error) - least) / (most - least)))


def command(report: Report) -> str:
    """The command line that repeats the run, for kernels that have one."""
    declared = report.declared
    words = ["kernelproof", "verify", *([report.kernel] if ":" in report.kernel else ["--backend", report.kernel])]
    for flag in ("op", "supports", "precision", "threads"):
        words += [f"--{flag}", declared[flag]] if declared.get(flag) else []
    words += [word for dtype in declared.get("dtypes", ()) if ":" in report.kernel for word in ("--dtype", dtype)]
    words += [word for axes in report.layouts.items() for word in ("--layout", "=".join(axes))]
    words += ["--examples", str(report.examples), "--seed", str(report.seed)]
    return shlex.join(words)
