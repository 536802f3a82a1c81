"""`kernelproof report`: what verify wrote as JSON, shown again, in any other form, and shards of a run as one."""

import json as json_format
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kernelproof.proofs.report import Report, together
from kernelproof.spec import ParameterError

from .command_line import check_writable, errors, screen, write_json


def report(
    *files: Path,
    json: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
    html: Path | None = None,
    junit: Path | None = None,
    markdown: Path | None = None,
) -> int:
    """Show reports that verify wrote with --json, several shards of one run as one; nothing is run.

    Exit status: 0 proven, 1 refuted, 2 wrong usage, 3 nothing checked, or shards of the run are missing.

    Parameters
    ----------
    files
        What kernelproof verify --json wrote: the shards of one kernel's run, in any order.
    json
        Write everything to this file; - for standard output.
    html
        Write it as a page to this file: one file, nothing loaded from elsewhere.
    junit
        Write it as JUnit XML to this file, for CI.
    markdown
        Write it as Markdown to this file, for a pull request.
    """
    from .report_files import write_reports
    from .terminal import show_report

    check_writable("report", json, html, junit, markdown)
    if not files:
        raise ParameterError("report", "no file", "at least one", "Name what verify --json wrote.")
    whole = together([_read(file) for file in files])
    console = errors if str(json) == "-" else screen
    show_report(console, whole)
    if json is not None:
        write_json(whole.as_json(), json)
    for path in write_reports(whole, html=html, junit=junit, markdown=markdown):
        console.print(f"Written: {path}", markup=False)
    if whole.missing and whole.exit_status != 1:
        console.print(f"Not the whole run: missing shards {', '.join(whole.missing)}.", style="bold")
        return 3
    return whole.exit_status


def _read(file: Path) -> Report:
    try:
        return Report.from_json(json_format.loads(file.read_text()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ParameterError(
            "report", f"{file}: {error}", "a report that verify --json wrote", "Name another."
        ) from error
