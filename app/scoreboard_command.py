"""`kernelproof scoreboard`: everybody's operators held to the same laws, as a table to share."""

import json as json_format
import os
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kernelproof.models.host import write_whole
from kernelproof.proofs.adapters import ADAPTERS, OWN
from kernelproof.proofs.findings import Finding
from kernelproof.proofs.report import Result, count
from kernelproof.proofs.scoreboard import HELD, Cell, Entry, Scoreboard, code, installed, scoreboard
from kernelproof.proofs.verify import check_effort
from kernelproof.spec import OPS, ParameterError
from kernelproof.spec.window import whole

from .__main__ import heard
from .executors import processes_of_their_own
from .terminal import progress_bar

SIGNS = {"proven": "✓", "refuted": "✗", "differs": "≠", "unsupported": "-", "not checked": "?", "no law": ""}
STYLES = {"proven": "green", "refuted": "red", "differs": "yellow"}
LEGEND = (
    "✓ proven on so many problems, ✗ refuted at these levels, ≠ differs by documented semantics at these levels, "
    "- unsupported, ? not checked"
)

INTRODUCTION = """# Scoreboard

Others' operators, and this project's, held to the same [laws](laws.md). Each framework's own functions are called with
the operator's arguments by a small adapter (`kernelproof.proofs.adapters`), on the CPU, with gradients by its own
differentiation; what it does not have is unsupported and no fault. A refutation speaks of the law that fell and of no
more; each is told below with what we know of it. Where a framework documents other semantics, it differs and is not
wrong.

Made by `kernelproof scoreboard --examples {examples} --seed {seed}` on {made} with {made_with}.{missing}"""


def board(
    *,
    adapters: Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=True)] = (),
    ops: Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=True)] = (),
    examples: int = 30,
    seed: int = 0,
    time_limit: float = 120.0,
    workers: int = os.cpu_count() or 1,
    merge: Annotated[tuple[Path, ...] | None, Parameter(negative=(), consume_multiple=True)] = None,
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
    merge
        Show boards that earlier runs wrote with --json as one, such as a GPU's beside a laptop's, or what a run that
        was ended has and the rest; nothing is run.
    markdown
        Write the board as Markdown to this file, anew after each operator: a run that is ended keeps what it has.
    json
        Write everything that was found to this file, likewise.
    """
    from .command_line import check_writable, screen

    check_writable("scoreboard", markdown, json)

    def write(found: Scoreboard) -> None:
        if markdown is not None:
            write_whole(markdown, as_markdown(found).encode())
        if json is not None:
            write_whole(json, json_format.dumps(found.as_json(), indent=2).encode())

    if merge is not None:
        if not merge:
            raise ParameterError("scoreboard", "--merge without a file", "boards that --json wrote", "Name them.")
        found = reduce(Scoreboard.beside, map(_read, merge))
        show(screen, found)
        write(found)
        return
    check_effort("scoreboard", examples, time_limit)
    whole("scoreboard", "workers", workers, 1)
    _make(screen, adapters or installed(), ops or tuple(OPS), examples, seed, time_limit, workers, write)


def _read(file: Path) -> Scoreboard:
    try:
        return Scoreboard.from_json(json_format.loads(file.read_text()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ParameterError("scoreboard", f"{file}: {error}", "a board that --json wrote", "Name another.") from error


def _make(
    screen: Console,
    names: Sequence[str],
    rows: Sequence[str],
    examples: int,
    seed: int,
    time_limit: float,
    workers: int,
    write: Callable[[Scoreboard], None],
) -> None:
    """Make the board and show it. What has been found is written each time, and is shown if the run is ended."""
    found: Scoreboard | None = None
    try:
        with progress_bar(screen) as bar, processes_of_their_own(workers) as executor:
            task = bar.add_task("starting", total=len(names) * len(rows))

            def progress(entry: Entry, board: Scoreboard) -> None:
                nonlocal found
                found = board
                write(board)
                screen.print(_line(entry))
                bar.update(task, advance=1, description=f"{entry.adapter} {entry.op}")

            scoreboard(
                names, rows, examples=examples, seed=seed, time_limit=time_limit, executor=executor, progress=progress
            )
    except KeyboardInterrupt:
        heard()
        raise
    finally:
        if found is not None:
            show(screen, found)


def _line(entry: Entry) -> str:
    """What became of one adapter's operator and its gradients."""
    about = f"{entry.adapter} {entry.op}"
    if entry.report is None:
        return f"[yellow]not checked[/]  {about} [dim]({escape(entry.why)})[/]"
    if not entry.asked:
        return f"[dim]unsupported  {about}[/]"
    seconds = sum(result.seconds for result in entry.report.results)
    fell = len(entry.report.failures)
    verdict = f"[red]{'fell':>11}[/]" if fell else f"[green]{'held':>11}[/]"
    laws = f"{fell} of {count(len(entry.asked), 'law')}" if fell else count(len(entry.asked), "law")
    return f"{verdict}  {about} [dim]({laws}, {seconds:.0f} s)[/]"


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
    for why, places in unchecked(found):
        console.print(f"not checked, {why}: {', '.join(places)}", markup=False)
    for adapter in found.adapters:
        for finding, results in fallen(found, adapter):
            console.print(f"\n[bold]{adapter}[/] {', '.join(_operators(results))}: {escape(_theorems(results))}")
            console.print(f"{_message(results[0])}\n{_known(finding, finding.link if finding else '')}", markup=False)


def as_markdown(found: Scoreboard) -> str:
    """The board, each adapter by level, and what fell, with the smallest case as code to paste."""
    versions = {name: version for packages in found.adapters.values() for name, version in packages.items()}
    made_with = ", ".join(f"{name} {version}" for name, version in {**found.versions, **versions}.items())
    missing = [name for name in (*OWN, *ADAPTERS) if name not in found.adapters]
    whole = ((f"`{each}`", *(text(found.cell(name, each)) for name in found.adapters)) for each in found.operators)
    parts = [
        INTRODUCTION.format(
            examples=found.examples,
            seed=found.seed,
            made=found.made,
            made_with=made_with,
            missing=f" Not run: {', '.join(missing)}." if missing else "",
        ),
        _table(("operator", *found.adapters), whole),
        f"{LEGEND}.",
    ]
    parts += [f"Not checked, {why}: {', '.join(places)}." for why, places in unchecked(found)]
    for adapter in found.adapters:
        cells = {each: [text(found.cell(adapter, each, level)) for level in HELD] for each in found.operators}
        rows = ((f"`{operator}`", *row) for operator, row in cells.items() if set(row) - {SIGNS["unsupported"], ""})
        parts += [f"## {adapter}", _table(("operator", *HELD), rows)]
        for finding, results in fallen(found, adapter):
            link = finding.link if finding else ""
            target = f"[{link}]({link.removeprefix('docs/')})" if link else ""
            parts += [
                f"**{', '.join(f'`{each}`' for each in _operators(results))}**: {_known(finding, target)}",
                f"Fell: {_theorems(results)}. For example, {_message(results[0])}.",
                f"<details><summary>The smallest case, to paste into Python</summary>\n\n"
                f"```python\n{code(adapter, results[0])}\n```\n\n</details>",
            ]
    return "\n\n".join(parts) + "\n"


def unchecked(found: Scoreboard) -> list[tuple[str, list[str]]]:
    """What was not held to the laws, by why not."""
    together: dict[str, list[str]] = {}
    for entry in found.entries:
        if entry.report is None:
            together.setdefault(entry.why, []).append(f"{entry.adapter} {entry.op}")
    return list(together.items())


def fallen(found: Scoreboard, adapter: str) -> list[tuple[Finding | None, list[Result]]]:
    """The laws that fell for an adapter: those together that one finding explains, the others by operator."""
    together: dict[Finding | str, list[Result]] = {}
    for result, finding in found.fallen(adapter):
        together.setdefault(finding or result.operator, []).append(result)
    return [(cause if isinstance(cause, Finding) else None, results) for cause, results in together.items()]


def _operators(results: Iterable[Result]) -> list[str]:
    return list(dict.fromkeys(result.operator for result in results))


def _theorems(results: Iterable[Result]) -> str:
    return ", ".join(dict.fromkeys(f"{result.level} {result.law.replace('_', ' ')}" for result in results))


def _message(result: Result) -> str:
    return result.failure.message if result.failure else ""


def _known(finding: Finding | None, link: str) -> str:
    """What is known of laws that fell, in one sentence, and where to read of it."""
    if finding is None:
        return "Not explained yet."
    verdict = "Differs by documented semantics: " if finding.documented else ""
    return f"{verdict}{finding.sentence} {link or 'We know of no report.'}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
