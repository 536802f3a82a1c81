"""`kernelproof replay`: cases that once broke a law, against the kernels as they are now."""

from pathlib import Path
from typing import Any

from rich.console import Console

from kernelproof.models.host import write_whole
from kernelproof.proofs.cases import Case, load
from kernelproof.proofs.cases import replay as rerun
from kernelproof.proofs.report import Report
from kernelproof.proofs.verify import check_effort
from kernelproof.spec import ParameterError, UnsupportedError

CASES = Path(".kernelproof/cases")
"""Where cases are saved and looked for unless told otherwise."""


def replay(*paths: Path, cases: Path = CASES, time_limit: float = 120.0) -> int:
    """Rerun cases that verify saved against the kernels as they are now, a line for each.

    Exit status: 0 all hold now, 1 some do not, 2 wrong usage, 3 nothing checked.

    Parameters
    ----------
    paths
        Files of cases. Left out: all in the folder.
    cases
        The folder where verify saved them.
    time_limit
        Seconds that one case may take, compilation included. Each runs in a process of its own.
    """
    from .command_line import NOTHING_CHECKED, PROVEN, REFUTED, screen

    check_effort("replay", time_limit=time_limit)
    # All are read before one is tried: a file that is no case is wrong usage, and no verdict of a kernel.
    read = [(path, load(path)) for path in paths or sorted(cases.glob("*.json"))]
    verdicts = {_shown(path, case, time_limit) for path, case in read}
    if not verdicts:
        screen.print(f"no cases in {cases}", markup=False)
    return REFUTED if "fails" in verdicts else PROVEN if "holds" in verdicts else NOTHING_CHECKED


def _shown(path: Path, case: Case, time_limit: float) -> str:
    """The case's verdict today, printed beside what it is about."""
    from .command_line import imported, screen

    about = f"{case.kernel}  {case.problem_again().operator}  {case.law.replace('_', ' ')}"
    try:
        kernel: Any = imported(case.kernel, "replay", "kernel") if ":" in case.kernel else case.kernel
        broken = rerun(case, kernel, time_limit)
    except (UnsupportedError, NotImplementedError) as declined:
        verdict, about = "unsupported", f"{about}  {declined}"
    except ParameterError as gone:
        # A case that cannot be tried does not hold.
        verdict, about = "fails", f"{about}  {gone}"
    else:
        verdict = "fails" if broken else "holds"
        about = f"{about}  {broken or ''}".rstrip()
    screen.print(f"{verdict:>11}  {path.name}  {about}", markup=False)
    return verdict


def keep(console: Console, report: Report, folder: Path) -> None:
    """Save the report's failures and say how to try them again."""
    match save(report, folder):
        case [path]:
            console.print(f"Saved; to try it again: kernelproof replay {path}", markup=False)
        case [_, *_] as paths:
            console.print(
                f"All {len(paths)} cases are saved; to try them again: kernelproof replay --cases {folder}",
                markup=False,
            )


def save(report: Report, folder: Path) -> list[Path]:
    """Keep the report's failures as files of cases, a file each; the ones that are there already stay as they are."""
    saved = [folder / case.file_name for case in Case.of(report)]
    for path, case in zip(saved, Case.of(report), strict=True):
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, case.text().encode())
    return saved
