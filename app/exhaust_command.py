"""`kernelproof exhaust`: every configuration of an operator up to a size, smallest first, resumed where it was left."""

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from kernelproof.models.host import write_whole
from kernelproof.proofs.exhaust import Progress, Scope, exhaust, name_of_run
from kernelproof.proofs.report import Report
from kernelproof.proofs.subject import subject_of
from kernelproof.proofs.verify import check_effort

from .executors import Engine, working
from .replay_command import CASES, keep
from .terminal import show_report

EVERY = 1.0
"""Seconds between checkpoints, at least."""


def run(
    kernel: str | None = None,
    *,
    op: str = "conv2d",
    backend: Literal["cpu", "cuda"] = "cpu",
    max_size: int = 5,
    steps: int | None = None,
    draws: int = 1,
    seed: int = 0,
    supports: str | None = None,
    dtype: Literal["float32", "float64"] = "float32",
    shard: str | None = None,
    workers: int = os.cpu_count() or 1,
    executor: Engine = "processes",
    scheduler: str | None = None,
    time_limit: float = 120.0,
    checkpoints: Path = Path(".kernelproof/exhaust"),
    cases: Path = CASES,
    json: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
) -> int:
    """Hold a kernel to the exact law on every configuration of its operator up to a size, the smallest first.

    It may be stopped at any time: the same command goes on where it was. Exit status: 0 all hold, 1 refuted, 2 wrong
    usage, 3 nothing checked.

    Parameters
    ----------
    kernel
        Yours, as package.module:name. Left out: the backend's.
    op
        The operator: conv2d, conv2d.dx, max_pool2d, linear ...
    backend
        Whose kernel when none of yours is given.
    max_size
        The most that any size of an array, stride, dilation, padding, or number of groups is.
    steps
        Only configurations at most so many steps from the smallest; one step makes one number one greater.
    draws
        How often values are drawn for each configuration.
    seed
        Draws the values.
    supports
        What your kernel is written for, as an expression: "stride[0] == stride[1] and groups == 1".
    dtype
        The scalar type.
    shard
        Only a part: 3/16 is the third of every sixteen pieces.
    workers
        Processes that share the work.
    executor
        What shares it out: processes of this machine, or dask (extra kernelproof[dask]).
    scheduler
        Address of a Dask cluster that is running, such as tcp://10.0.0.1:8786. Left out: one is started here.
    time_limit
        Seconds that a thousand configurations may take, compilation included.
    checkpoints
        Folder where it is noted how far each run is.
    cases
        Folder where a failing case is saved, for kernelproof replay.
    json
        Write what was found to this file; - for standard output.
    """
    from .command_line import NOTHING_CHECKED, check_folder, check_writable, errors, imported, screen, write_json

    check_effort("exhaust", time_limit=time_limit)
    check_writable("exhaust", json)
    check_folder("exhaust", cases)
    check_folder("exhaust", checkpoints)
    to_stdout = json is not None and str(json) == "-"
    console = errors if to_stdout else screen
    subject = subject_of(
        backend if kernel is None else imported(kernel, "exhaust", "kernel"), op, supports=supports, dtypes=(dtype,),
        name=kernel,
    )  # fmt: skip
    scope = Scope(op, max_size, steps, draws, seed, dtype, shard)
    file = checkpoints / f"{name_of_run(subject, scope)}.json"
    try:
        start = Progress.of(file.read_text())
        console.print(f"{_checked(start):,} configurations are done already ({file})", markup=False)
    except FileNotFoundError:
        start = None
    where = scheduler or f"{workers} workers"
    console.print(f"{op}: {scope.size:,} configurations, sizes up to {max_size}, {where}", markup=False)
    started, before, last = time.monotonic(), _checked(start), start
    with working(workers, executor, scheduler, kernel, apart=True) as workforce, _bar(console) as bar:
        task = bar.add_task("compiling", total=scope.size, completed=before)
        noted = started
        try:
            for last in exhaust(subject, scope, start, workforce, time_limit):
                bar.update(task, completed=_checked(last), description=f"{scope.steps_done(last.done)} steps away")
                if time.monotonic() - noted > EVERY:
                    noted = _noted(file, last)
        finally:
            # A run that is over starts anew when it is asked for again.
            if last and last.done < len(scope.chunks) and not last.result.failure:
                _noted(file, last)
                console.print(f"{_checked(last):,} are done; the same command goes on from there", markup=False)
            else:
                file.unlink(missing_ok=True)
    if last is None:
        return NOTHING_CHECKED
    report = Report(subject.name, seed, last.result.cases, (last.result,), subject.declared, subject.source)
    show_report(console, report)
    rate = (_checked(last) - before) / (time.monotonic() - started)
    console.print(
        f"{last.result.cases:,} configurations hold, {last.result.vacuous:,} have zeros for an answer, "
        f"{last.result.unsupported:,} are declined; {rate:,.0f} a second"
    )
    if last.result.verdict == "proven" and last.result.escape is not None:
        console.print(f"A kernel wrong in one of them alone escapes with probability <= {last.result.escape:.1e}")
    keep(console, report, cases)
    if json is not None:
        write_json({**report.as_json(), "scope": asdict(scope), "configurations": scope.size}, json)
    return report.exit_status


class _Rate(ProgressColumn):
    """Configurations a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f}/s")


def _bar(console: Console) -> Bar:
    return Bar(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), _Rate(),
        TimeRemainingColumn(), console=console, transient=True,
    )  # fmt: skip


def _checked(progress: Progress | None) -> int:
    """How many configurations have been tried."""
    if progress is None:
        return 0
    return progress.result.cases + progress.result.vacuous + progress.result.unsupported


def _noted(file: Path, progress: Progress) -> float:
    """Write the checkpoint; the time when that was."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, progress.text().encode())
    return time.monotonic()
