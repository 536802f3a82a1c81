"""What the commands show while they work and when they are done."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kernelproof.models import Digits, TrainConfig, train
from kernelproof.models import Progress as Step
from kernelproof.proofs import Report, Result
from kernelproof.proofs.report import count, reproduction, smallest_case, wider
from kernelproof.proofs.subject import Subject
from kernelproof.proofs.verify import LEVELS, work_of
from kernelproof.spec import SpecChain
from kernelproof.spec.parameters import Parameters

COLOURS = {"proven": "green", "refuted": "red", "unsupported": "yellow", "vacuous": "yellow"}


def progress_bar(console: Console) -> Progress:
    """A bar of what is done, that goes when all is."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, transient=True,
    )  # fmt: skip


@contextlib.contextmanager
def watched(
    console: Console, subject: Subject, levels: Sequence[str] = (), shard: str | None = None, *, lines: bool = True
) -> Iterator[Callable[[Result], None]]:
    """What `verify` reports its progress to: a bar of what is left and, with `lines`, a line for each law decided.

    What an operator fails at first is told at once, with the code that shows it.
    """
    total, told = len(work_of(subject, levels or LEVELS, shard)), set[str]()
    so_far = Report(subject.name, 0, 0, (), subject.declared)
    with progress_bar(console) as bar:
        task = bar.add_task("compiling and proving", total=total)

        def progress(result: Result) -> None:
            if lines or result.failure:
                console.print(line(result))
            if result.failure and result.operator not in told:
                told.add(result.operator)
                console.print(result.failure.message, markup=False)
                _show_code(console, result, so_far)
            bar.update(task, advance=1, description=result.operator)

        yield progress


def line(result: Result) -> str:
    """One law's verdict: level, operator, theorem, and the figure that it is judged by."""
    figure = ""
    if result.verdict == "proven" and result.escape is not None:
        figure = f", another polynomial passes with probability <= {result.escape:.1e}"
    elif result.verdict == "proven" and result.worst_ratio:
        figure = f", worst error {result.worst_ratio:.0%} of its bound"
    elif result.verdict == "vacuous":
        figure = f", {result.vacuous} that prove nothing"
    elif result.verdict == "unsupported":
        figure = f", {result.unsupported} declined"
    figure += f", {wider(result)}" if result.rounded_as else ""
    colour = COLOURS[result.verdict]
    held = "for every size" if result.level == "L0" else f"{count(result.cases, 'problem')}{figure}"
    return (
        f"[{colour}]{result.verdict:>11}[/]  {result.level} {result.operator:<22} {result.law.replace('_', ' ')} "
        f"[dim]({held})[/]"
    )


def show_report(console: Console, report: Report) -> None:
    """The verdict, its numbers, what failed, and last each operator's smallest case with the code that shows it."""
    operators, seconds = len({result.operator for result in report.laws}), sum(each.seconds for each in report.results)
    theorems = f"{count(len(report.theorems), 'theorem')} about sizes, " if report.theorems else ""
    verdict = f"[bold {COLOURS[report.verdict]}]{escape(report.kernel)}: {report.verdict}[/]"
    held = f"{count(len(report.laws), 'law')} of {count(operators, 'operator')}"
    console.print(
        f"{verdict} - {held} on {count(report.problems, 'problem')}, {theorems}seed {report.seed}, {seconds:.0f} s"
    )
    if declined := sum(result.unsupported for result in report.laws):
        reasons = dict.fromkeys(result.declined for result in report.laws if result.declined)
        console.print(f"{count(declined, 'problem')} declined: {'; '.join(reasons)}", markup=False)
    for operator, (found, planted) in report.museum.items():
        console.print(f"The same run finds {found} of the museum's {count(planted, 'fault')} in {operator}")
    smallest = list(report.smallest.values())
    for result in report.failures:
        if result not in smallest:
            _show_failure(console, result)
    for result in reversed(smallest):
        _show_failure(console, result)
        _show_code(console, result, report)


def _show_code(console: Console, result: Result, report: Report) -> None:
    if code := reproduction(result, report):
        console.print(f"{smallest_case(result)}, to paste into Python:\n")
        console.print(code, markup=False)


def _show_failure(console: Console, result: Result) -> None:
    assert result.failure is not None
    statement = escape(" ".join(result.statement.split()))
    console.print(f"\n[red]{result.law.replace('_', ' ')}[/] ({statement})")
    console.print(result.failure.message, markup=False)


def trained(
    console: Console, chain: SpecChain, parameters: Parameters, digits: Digits, config: TrainConfig
) -> tuple[Parameters, list[Step]]:
    """Train under a bar; a line an epoch. The parameters at the end and every step's progress."""
    steps: list[Step] = []
    with progress_bar(console) as bar:
        task = bar.add_task("compiling", total=None)
        for step in train(chain, parameters, digits.images, digits.labels, config):
            steps.append(step)
            bar.update(
                task, total=step.steps, completed=step.step, description=f"epoch {step.epoch} loss {step.loss:.4f}"
            )
            if step.step * config.epochs % step.steps == 0:
                of_epoch = [each for each in steps if each.epoch == step.epoch]
                loss = sum(each.loss for each in of_epoch) / len(of_epoch)
                accuracy = sum(each.accuracy for each in of_epoch) / len(of_epoch)
                console.print(f"epoch {step.epoch:>3} of {config.epochs}: loss {loss:.4f}, accuracy {accuracy:.2%}")
    return steps[-1].parameters, steps
