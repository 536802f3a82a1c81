"""The scoreboard: verdicts by operator and level, what fell with what is known, and the command that prints it."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from kernelproof import spec
from kernelproof.executors import processes_of_their_own
from kernelproof.proofs import Subject, findings
from kernelproof.proofs.adapters import ADAPTERS, Adapter
from kernelproof.proofs.findings import Finding
from kernelproof.proofs.scoreboard import HELD, Entry, Scoreboard, installed, scoreboard
from kernelproof.scoreboard_command import as_markdown, text

PAGE = Path(__file__).parents[2] / "docs" / "scoreboard.md"


def relu(x: Any) -> Any:
    """NaN becomes 0."""
    return np.where(x > 0, x, np.zeros_like(x))


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> Scoreboard:
    """The board of an adapter whose relu loses NaN, and which has no more than that."""
    module = ModuleType("wrong")
    module.SUBJECT = Subject("wrong", {"relu": relu})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kernelproof.proofs.adapters.wrong", module)
    monkeypatch.setitem(ADAPTERS, "wrong", Adapter("wrong", ("numpy",), "wrong"))  # type: ignore[arg-type]
    return scoreboard(["wrong"], ["relu", "linear"], examples=10)


def test_a_right_adapter_is_proven_at_every_level_that_has_laws():
    board = scoreboard(["cpu"], ["relu"], examples=3)
    verdicts = {level: board.cell("cpu", "relu.dx", level).verdict for level in HELD}
    assert set(verdicts.values()) == {"proven", "no law"}
    assert verdicts["L6"] == "no law"
    assert board.cell("cpu", "relu").cases > 0
    assert not board.fallen("cpu")


def test_a_wrong_adapter_is_refuted_where_it_is_wrong(wrong: Scoreboard):
    assert wrong.cell("wrong", "relu", "L1").verdict == "proven"
    assert wrong.cell("wrong", "relu", "L4").verdict == "refuted"
    assert wrong.cell("wrong", "relu").verdict == "refuted"
    assert text(wrong.cell("wrong", "relu")) == "✗ L4"
    [(result, finding)] = wrong.fallen("wrong")
    assert (result.law, finding) == (findings.SPECIAL, None)


def test_what_an_adapter_lacks_is_unsupported(wrong: Scoreboard):
    assert {wrong.cell("wrong", operator).verdict for operator in wrong.operators if operator != "relu"} == {
        "unsupported"
    }


@pytest.mark.parametrize(("says", "documented", "verdict"), [
    ("the specification nan", True, "differs"),
    ("the specification nan", False, "refuted"),
    ("something else", True, "refuted"),
])  # fmt: skip
def test_documented_semantics_differ_and_are_not_wrong(
    wrong: Scoreboard, monkeypatch: pytest.MonkeyPatch, says: str, documented: bool, verdict: str
):
    known = Finding("wrong", "relu", findings.SPECIAL, says, "So it is.", "https://example.org", documented)
    monkeypatch.setattr(findings, "FINDINGS", [known])
    assert wrong.cell("wrong", "relu").verdict == verdict


def test_the_page_shows_what_fell_with_code_to_paste(wrong: Scoreboard):
    page = as_markdown(wrong)
    assert "| `relu` | ✗ L4 |" in page
    assert "kernelproof scoreboard --examples 10 --seed 0" in page
    assert "L4 puts special values where the specification does" in page
    assert "kernel = 'wrong'" in page
    assert f"check({findings.SPECIAL!r}, kernel, problem)" in page
    assert "Not explained yet." in page


def test_the_board_is_json(wrong: Scoreboard):
    data = json.loads(json.dumps(wrong.as_json()))
    assert data["adapters"] == {"wrong": {"numpy": np.__version__}}
    assert {cell["verdict"] for cell in data["board"] if cell["operator"] == "relu"} == {"proven", "refuted"}
    assert [fallen["law"] for fallen in data["fallen"]] == [findings.SPECIAL]


def test_a_board_is_read_again_and_put_beside_another(wrong: Scoreboard):
    again = Scoreboard.from_json(json.loads(json.dumps(wrong.as_json())))
    assert again.as_json() == wrong.as_json()
    both = again.beside(scoreboard(["cpu"], ["relu"], examples=10))
    assert list(both.adapters) == ["cpu", "wrong"]
    assert both.cell("cpu", "relu").verdict == "proven"
    assert both.cell("cpu", "linear").verdict == "not checked"
    assert text(both.cell("wrong", "relu")) == text(wrong.cell("wrong", "relu"))
    assert len(both.beside(wrong).entries) == len(both.entries) == 3
    with pytest.raises(spec.ParameterError, match="runs alike"):
        both.beside(scoreboard(["cpu"], ["relu"], examples=3))


class Dying(Executor):
    """Its workers die at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(BrokenExecutor())
        return future


def test_a_worker_that_dies_leaves_its_cells_unchecked():
    board = scoreboard(["cpu"], ["relu"], examples=1, executor=Dying())
    assert {board.cell("cpu", operator).verdict for operator in board.operators} == {"not checked"}
    assert board.as_json()["fallen"] == []


def test_an_interrupted_run_has_the_board_of_what_was_done(wrong: Scoreboard):
    kept: list[Scoreboard] = []

    def interrupted(entry: Entry, board: Scoreboard) -> None:
        kept.append(board)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scoreboard(["wrong"], ["relu", "linear"], examples=10, progress=interrupted)
    [board] = kept
    assert text(board.cell("wrong", "relu")) == text(wrong.cell("wrong", "relu"))
    assert board.cell("wrong", "linear").verdict == "not checked"
    assert "Not checked, not reached before the run was ended: wrong linear." in as_markdown(board)
    # The rest of it beside that, whichever is named first.
    for both in (board.beside(wrong), wrong.beside(board)):
        assert both.cell("wrong", "linear").verdict == "unsupported"


def _ends_its_process() -> None:
    os._exit(7)


def test_a_process_that_ends_takes_no_other_task_with_it():
    with processes_of_their_own(1) as executor:
        ends, lives = executor.submit(_ends_its_process), executor.submit(os.getpid)
        with pytest.raises(BrokenExecutor):
            ends.result()
        assert lives.result() != os.getpid()


class Impatient:
    """A lock at which Ctrl-C is pressed again, once."""

    def __init__(self) -> None:
        self._pressed = False

    def __enter__(self) -> None:
        if not self._pressed:
            self._pressed = True
            raise KeyboardInterrupt

    def __exit__(self, *exception: object) -> None:
        pass


def test_an_interrupt_while_a_run_is_ended_leaves_no_process():
    def interrupted() -> None:
        with processes_of_their_own(1) as executor:
            executor.submit(time.sleep, 600)
            while not multiprocessing.active_children():
                time.sleep(0.05)
            vars(executor)["_starting"] = Impatient()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()  # Which waits for its processes.
    assert not multiprocessing.active_children()


@pytest.mark.skipif(os.name != "posix", reason="only POSIX terminates processes so")
@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_ended_shows_and_keeps_what_it_has(ended_by: signal.Signals, tmp_path: Path):
    data = tmp_path / "board.json"
    command = [sys.executable, "-m", "kernelproof", "scoreboard", "--adapters", "onnxruntime", "--ops", "sgd", "conv2d"]
    command += ["--examples", "100000", "--workers", "1", "--json", str(data)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not data.exists():
        time.sleep(0.05)
    process.send_signal(ended_by)
    shown, complaint = process.communicate()
    assert (process.returncode, "Traceback" in complaint) == (128 + ended_by, False)
    assert "not reached before the run was ended: onnxruntime conv2d" in shown
    assert [entry["report"] is None for entry in json.loads(data.read_text())["entries"]] == [False, True]


def test_a_file_that_cannot_be_written_is_told_before_the_run(tmp_path: Path):
    command = [sys.executable, "-m", "kernelproof", "scoreboard", "--adapters", "cpu", "--ops", "sgd"]
    command += ["--json", str(tmp_path / "no folder" / "board.json")]
    came = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (came.returncode, came.stdout) == (2, "")


@pytest.mark.parametrize(("arguments", "error"), [
    ({"adapters": ["tensorflow"]}, spec.ParameterError),
    ({"adapters": ["cpu"], "ops": ["conv3d"]}, spec.ParameterError),
])  # fmt: skip
def test_wrong_usage_is_told(arguments: dict[str, Any], error: type[Exception]):
    with pytest.raises(error):
        scoreboard(**arguments)


def test_this_project_and_what_is_installed_are_on_the_board():
    assert installed()[0] == "cpu"
    assert {"onnxruntime", "onnx.reference"} <= set(installed())


def test_the_command_prints_and_writes_the_board(tmp_path: Path):
    markdown, data, merged = tmp_path / "board.md", tmp_path / "board.json", tmp_path / "merged.md"
    command = [sys.executable, "-m", "kernelproof", "scoreboard", "--adapters", "onnxruntime", "--ops", "relu"]
    command += ["--examples", "2", "--workers", "1", "--markdown", str(markdown), "--json", str(data)]
    came = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "relu.dx" in came.stdout
    assert json.loads(data.read_text())["adapters"]["onnxruntime"]
    assert "| `relu` | ✓" in markdown.read_text()
    assert "Not run: cpu, cuda, torch" in markdown.read_text()
    command = [*command[:4], "--merge", str(data), "--markdown", str(merged)]
    subprocess.run(command, capture_output=True, check=True)
    assert merged.read_text() == markdown.read_text()
    nothing = subprocess.run([*command[:4], "--merge"], capture_output=True, text=True, check=False)
    assert (nothing.returncode, nothing.stdout) == (2, "")
    data.write_text("{}")
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2


def test_the_command_refuses_what_is_not_there():
    command = [sys.executable, "-m", "kernelproof", "scoreboard", "--adapters", "tensorflow"]
    came = subprocess.run(command, capture_output=True, text=True, check=False)
    assert came.returncode == 2
    assert "onnxruntime" in came.stderr


@pytest.mark.skipif(not PAGE.exists(), reason="no page yet")
def test_everything_that_fell_on_the_page_is_explained():
    page = PAGE.read_text()
    assert "Not explained yet" not in page
    assert "✗" in page
