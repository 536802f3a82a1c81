"""`kernelproof scoreboard`: everybody's operators held to the same laws, as a table to share."""

import json as json_format
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kernelproof.models.host import write_whole
from kernelproof.proofs.findings import Finding
from kernelproof.proofs.report import Result
from kernelproof.proofs.scoreboard import HELD, Cell, Entry, Scoreboard, code, installed, scoreboard
from kernelproof.spec import OPS

from .terminal import progress_bar

SIGNS = {"proven": "✓", "refuted": "✗", "differs": "≠", "unsupported": "-", "not checked": "?", "no law": ""}
STYLES = {"proven": "green", "refuted": "red", "differs": "yellow"}
LEGEND = (
    "✓ proven on so many problems, ✗ refuted at these levels, ≠ differs by documented semantics at these levels, "
    "- unsupported, ? not checked"
)


def board(
    *,
    adapters: Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=True)] = (),
    ops: Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=True)] = (),
    examples: int = 30,
    seed: int = 0,
    time_limit: float = 120.0,
    workers: int = os.cpu_count() or 1,
    markdown: Path | None = None,
    json: Path | None = None,
) -> None:
    """Hold everybody's operators to the laws: PyTorch, ONNX Runtime, onnx, JAX, tinygrad, as far as they are installed.

    The exit status is 0 whoever is refuted, 2 for wrong usage.

    Parameters
    ----------
    adapters
        Whose: cpu, cuda, torch, onnxruntime, onnx.reference, jax, tinygrad. Left out: all that are installed.
    ops
        Which operators, with their gradients: conv2d, max_pool2d ... Left out: all.
    examples
        Problems drawn for each law.
    seed
        Draws the problems: the same seed, the same problems.
    time_limit
        Seconds that one check may take, compilation included.
    workers
        Processes at a time; each holds one adapter to one operator's laws and then ends.
    markdown
        Write the board as Markdown to this file.
    json
        Write everything that was found to this file.
    """
    from .command_line import screen

    names, rows = adapters or installed(), ops or tuple(OPS)
    # Each library spins up threads of its own: together no more than there are cores.
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    with (
        progress_bar(screen) as bar,
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as executor,
    ):
        task = bar.add_task("starting", total=len(names) * len(rows))

        def progress(entry: Entry) -> None:
            bar.update(task, advance=1, description=f"{entry.adapter} {entry.op}")

        found = scoreboard(
            names, rows, examples=examples, seed=seed, time_limit=time_limit, executor=executor, progress=progress
        )
    show(screen, found)
    if markdown is not None:
        write_whole(markdown, as_markdown(found).encode())
    if json is not None:
        write_whole(json, json_format.dumps(found.as_json(), indent=2).encode())


def text(cell: Cell) -> str:
    """A cell in a few characters: its sign, with how many problems held or at which levels laws fell."""
    detail = ", ".join(dict.fromkeys(result.level for result in cell.fallen)) or (cell.cases or "")
    return f"{SIGNS[cell.verdict]} {detail if cell.verdict != 'not checked' else ''}".strip()


def show(console: Console, found: Scoreboard) -> None:
    """The board, then what fell."""
    table = Table("operator", *found.adapters, caption=LEGEND, caption_justify="left")
    for operator in found.operators:
        cells = [found.cell(adapter, operator) for adapter in found.adapters]
        table.add_row(operator, *(f"[{STYLES.get(cell.verdict, 'dim')}]{text(cell)}[/]" for cell in cells))
    console.print(table)
    for entry in found.entries:
        if entry.report is None:
            console.print(f"{entry.adapter} {entry.op}: not checked, {entry.why}", markup=False)
    for adapter in found.adapters:
        for result, finding in found.fallen(adapter):
            console.print(f"\n[bold]{adapter}[/] {result.level} {result.operator}: {escape(_theorem(result))}")
            console.print(result.failure.message if result.failure else "", markup=False)
            console.print(_known(finding), markup=False)


def as_markdown(found: Scoreboard) -> str:
    """The board, each adapter by level, and what fell, with the smallest case as code to paste."""
    versions = {name: version for packages in found.adapters.values() for name, version in packages.items()}
    made_with = ", ".join(f"{name} {version}" for name, version in {**found.versions, **versions}.items())
    parts = [
        "# Scoreboard",
        f"{found.examples} problems for each law, seed {found.seed}; {made_with}.",
        LEGEND + ".",
        _table(
            ("operator", *found.adapters),
            (
                (f"`{each}`", *(text(found.cell(adapter, each)) for adapter in found.adapters))
                for each in found.operators
            ),
        ),
    ]
    parts += [f"{each.adapter} `{each.op}`: not checked, {each.why}" for each in found.entries if each.report is None]
    for adapter in found.adapters:
        parts += [f"## {adapter}", _table(
            ("operator", *HELD),
            ((f"`{each}`", *(text(found.cell(adapter, each, level)) for level in HELD)) for each in found.operators),
        )]  # fmt: skip
        for result, finding in found.fallen(adapter):
            parts += [
                f"**`{result.operator}`, {result.level}: {_theorem(result)}.** {_known(finding)}",
                f"```text\n{result.failure.message if result.failure else ''}\n```",
                f"<details><summary>The smallest case, to paste into Python</summary>\n\n"
                f"```python\n{code(adapter, result)}\n```\n\n</details>",
            ]
    return "\n\n".join(parts) + "\n"


def _theorem(result: Result) -> str:
    return result.law.replace("_", " ")


def _known(finding: Finding | None) -> str:
    """What is known of a law that fell, in one sentence, with its link."""
    if finding is None:
        return "Not explained yet."
    verdict = "Differs by documented semantics: " if finding.documented else ""
    return f"{verdict}{finding.sentence} {finding.link or 'We know of no report.'}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
