"""A report for other programs: JUnit XML for CI, Markdown for a pull request."""

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from .report import Report, Result, count, reproduction, smallest_case, wider

MARKS = {"proven": "✅", "refuted": "❌", "unsupported": "➖", "vacuous": "⚠️"}  # noqa: RUF001 - marks, not text

_MOST = 60_000
"""Characters of Markdown: GitHub takes 65,536 in a comment."""

_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(report: Report) -> str:
    """The report as JUnit XML: a suite an operator, a case a law; what was not checked is skipped, never passed."""
    root = ElementTree.Element("testsuites", {"name": f"kernelproof {_xml(report.kernel)}", **_totals(report.results)})
    for operator in dict.fromkeys(result.operator for result in report.results):
        results = [result for result in report.results if result.operator == operator]
        suite = ElementTree.SubElement(root, "testsuite", {"name": operator, **_totals(results)})
        properties = ElementTree.SubElement(suite, "properties")
        for name, value in facts(report).items():
            ElementTree.SubElement(properties, "property", name=name, value=_xml(value))
        for result in results:
            case = ElementTree.SubElement(
                suite, "testcase", classname=f"{_xml(report.kernel)}.{operator}", name=result.law,
                time=f"{result.seconds:.3f}",
            )  # fmt: skip
            if result.failure:
                failure = ElementTree.SubElement(
                    case, "failure", type="LawBroken", message=_xml(result.failure.message)
                )
                failure.text = _xml(reproduction(result, report) or result.failure.message)
            elif result.verdict != "proven":
                ElementTree.SubElement(case, "skipped", message=_xml(why_unchecked(result)))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _totals(results: Sequence[Result]) -> dict[str, str]:
    verdicts = [result.verdict for result in results]
    return {
        "tests": str(len(results)),
        "failures": str(verdicts.count("refuted")),
        "errors": "0",
        "skipped": str(verdicts.count("unsupported") + verdicts.count("vacuous")),
        "time": f"{sum(result.seconds for result in results):.3f}",
    }


def _xml(text: str) -> str:
    """The text without what XML cannot hold, such as control characters in an exception's message."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def why_unchecked(result: Result) -> str:
    """Why a law is neither proven nor refuted."""
    if result.verdict == "vacuous":
        return f"{result.vacuous} problems, none of which proves anything"
    return f"{result.unsupported} problems, all declined: {result.declined}"


def facts(report: Report) -> dict[str, str]:
    """What is needed to judge the report and to run it again, as text."""
    declared = {name: value for name, value in report.declared.items() if value and name not in ("op", "precision")}
    told = {name: ", ".join(value) if isinstance(value, list) else str(value) for name, value in declared.items()}
    if "layouts" in declared:
        told["layouts"] = ", ".join(f"{name}={axes}" for name, axes in report.layouts.items())
    found = ", ".join(f"{operator} {found} of {planted}" for operator, (found, planted) in report.museum.items())
    museum = {"the museum's faults that it finds": found} if found else {}
    return {
        **({"missing shards": ", ".join(report.missing)} if report.missing else {}),
        "precision": f"{report.precision}, {report.precision_found}",
        **told,
        **museum,
        "problems a law": str(report.examples),
        "seed": str(report.seed),
        "source": report.source or "none",
        **report.versions,
    }


def markdown(report: Report) -> str:
    """The report for a pull request: a verdict, a table operator x level, then every failure with its code."""
    levels = sorted({result.level for result in report.results})
    lines = [
        f"## {MARKS[report.verdict]} `{report.kernel}`: {report.verdict}"
        + (f", but for missing shards {', '.join(report.missing)}" if report.missing else ""),
        "",
        f"{count(len(report.laws), 'law')} of {count(len(report.operators), 'operator')} "
        f"on {count(report.problems, 'problem')}"
        + (f", {count(len(report.theorems), 'theorem')} about sizes" if report.theorems else "")
        + (
            f". A wrong kernel escapes one problem with probability at most {report.escape:.0e}"
            if report.escape
            else ""
        )
        + (f". Worst error: {report.worst_ratio:.0%} of its bound" if report.worst_ratio else "")
        + ".",
        *(
            f"\n`{each.operator}` {each.level}, {each.cases:,} problems: {wider(each)}."
            for each in report.laws
            if each.rounded_as
        ),
        "",
        f"| operator | {' | '.join(levels)} |",
        f"|---|{':-:|' * len(levels)}",
    ]
    for operator in dict.fromkeys(result.operator for result in report.results):
        cells = (_cell([r for r in report.results if (r.operator, r.level) == (operator, level)]) for level in levels)
        lines.append(f"| {operator} | {' | '.join(cells)} |")
    foot = ["", f"<sub>{_html(', '.join(f'{name} {value}' for name, value in facts(report).items()))}</sub>", ""]
    failures, room = [_failure(result, report) for result in report.shown], _MOST - len("\n".join(lines + foot))
    for shown, failure in enumerate(failures):
        room -= len(failure) + 1
        if room < 0:
            lines.append(f"\n{len(failures) - shown} more refuted laws are in the JSON report.")
            break
        lines.append(failure)
    return "\n".join(lines + foot)


def _cell(results: Sequence[Result]) -> str:
    """Each verdict's mark once, with its count where laws of one level differ."""
    counts = {verdict: sum(result.verdict == verdict for result in results) for verdict in MARKS}
    seen = [(MARKS[verdict], number) for verdict, number in counts.items() if number]
    return " ".join(mark if len(seen) == 1 else f"{mark} {number}" for mark, number in seen)


def _failure(result: Result, report: Report) -> str:
    assert result.failure is not None
    title = _html(f"{result.level} {result.operator}: {result.law.replace('_', ' ')}")
    parts = (
        f"\n<details><summary>{MARKS['refuted']} {title}</summary>",
        result.statement,
        _fenced(result.failure.message, "text"),
        f"{smallest_case(result)}:" if result.failure.problem else "",
        _fenced(reproduction(result, report), "python"),
        "</details>",
    )
    return "\n\n".join(part for part in parts if part)


def _fenced(text: str, language: str) -> str:
    """A block of code; a message may hold anything, backticks included."""
    fence = "`" * (1 + max(2, *(len(run) for run in re.findall("`+", text)), 0))
    return f"{fence}{language}\n{text}\n{fence}" if text else ""


def _html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
