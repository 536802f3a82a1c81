"""Reports and certificates as files: written by `verify`, checked by `check-certificate`."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kernelproof.models.host import write_whole
from kernelproof.proofs import Report, certificate, render

from .command_line import PROVEN, REFUTED, imported, screen
from .report_page import report_page

TIME_LIMIT = 120.0
"""Seconds for one check of a kernel that is not ours, as `verify` allows by default: it may hang."""


def write_reports(report: Report, **files: Path | None) -> list[Path]:
    """Write the report in each form that has a file, whole or not at all; the files that were written.

    A kernel that is not proven gets no certificate. Raises OSError.
    """
    forms = {
        "html": report_page,
        "junit": render.junit,
        "markdown": render.markdown,
        "certificate": lambda report: json.dumps(certificate.certificate(report), indent=1) + "\n",
    }
    written = []
    for form, path in files.items():
        if path is not None and (form != "certificate" or report.verdict == "proven"):
            write_whole(path, forms[form](report).encode())
            written.append(path)
    return written


def check_certificate(file: Path, *, again: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Check a certificate against the kernel's and specification's present source.

    Exit status: 0 it holds, 1 something has changed or is refuted, 2 wrong usage.

    Parameters
    ----------
    file
        What kernelproof verify --certificate wrote.
    again
        Repeat the proof too, with the same seed and number of problems.
    """
    held = certificate.read(file.read_text(errors="replace"))
    name: str = held["kernel"]
    subject = certificate.certified(held, imported(name, "check-certificate", "kernel") if ":" in name else name)
    changed = certificate.differences(held, subject)
    for difference in changed:
        screen.print(difference, markup=False)
    verdict = "does not hold for the present source" if changed else "holds for the present source"
    screen.print(f"[bold {'red' if changed else 'green'}]{name}[/]: the certificate {verdict}")
    if not again:
        return REFUTED if changed else PROVEN

    from .terminal import show_report, watched

    with watched(screen, subject) as progress:
        report = certificate.again(held, subject, progress=progress, time_limit=TIME_LIMIT if ":" in name else None)
    show_report(screen, report)
    return REFUTED if changed else report.exit_status
