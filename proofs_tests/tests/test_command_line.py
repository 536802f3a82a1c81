"""The command line: exit statuses, refusals before work, machine-readable output, Ctrl-C."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernelproof.command_line import COMMANDS, app
from kernelproof.kernels.gpu import gpu

COMMAND = [sys.executable, "-m", "kernelproof"]


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, cwd=cwd)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_s_help_says_what_its_docstring_says(command: str) -> None:
    called = app[command].default_command
    assert called is not None
    description, _, _ = (inspect.getdoc(called) or "").partition("\n\nParameters\n")
    assert app[command].help.split() == description.split()


def test_the_help_of_all_commands_imports_none_of_them() -> None:
    listed = "from kernelproof.command_line import app; app(['--help'], result_action='return_value')\n"
    heavy = "import sys; print(*{'numba', 'hypothesis', 'onnx', 'z3'} & set(sys.modules), file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", listed + heavy], capture_output=True, text=True, check=True)
    assert all(command in result.stdout for command in COMMANDS)
    assert result.stderr == "\n"


def test_a_proven_operator_exits_with_0() -> None:
    result = run("verify", "--op", "flatten", "--level", "L1", "--examples", "5")
    assert (result.returncode, "cpu: proven" in result.stdout) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["verify", "--op", "conv3d"], "conv3d"),
        (["verify", "nowhere:conv2d", "--op", "conv2d"], "nowhere"),
        (["verify", "json:absent", "--op", "conv2d"], "absent"),
        (["verify", "json:dumps"], "Pass op="),
        (["verify", "json:dumps", "--op", "relu", "--supports", "x_shape[9] > 0"], "tuple index out of range"),
        (["verify", "--level", "L99"], "--level"),
        (["verify", "--examples", "0"], "examples=0"),
        (["verify", "json:dumps", "--op", "relu", "--time-limit", "0"], "time_limit=0"),
        (["verify", "--json", "/nowhere/at/all.json"], "/nowhere/at/all.json"),
        (["verify", "--json", "/"], "file '/', a folder"),
        (["verify", "--cases", "/dev/null"], "folder '/dev/null'"),
        (["verify", "json:dumps", "--op", "relu", "--threads", "math:pi"], "it is a float"),
        (["exhaust", "json:dumps", "--op", "relu", "--time-limit", "nan"], "time_limit=nan"),
        (["exhaust", "json:dumps", "--op", "relu", "--json", "/nowhere/at/all.json"], "/nowhere/at/all.json"),
        (["exhaust", "json:dumps", "--op", "relu", "--checkpoints", "/dev/null"], "folder '/dev/null'"),
        (["replay", "--time-limit", "0"], "time_limit=0"),
        (["scoreboard", "--adapters", "cpu", "--examples", "0"], "examples=0"),
        (["scoreboard", "--adapters", "cpu", "--workers", "0"], "workers=0"),
        (["plan", "conv2d", "--x", "1x1x1x1", "--weight", "1x1x1x1", "--json", "/"], "file '/', a folder"),
        (
            ["plan", "conv2d", "--x", "99999x9999x9999x9999", "--weight", "1x9999x1x1", "--measure"],
            "Unable to allocate",
        ),
        (["check-certificate", sys.executable], "needs a certificate"),
        (["train", "cnn2", "/nowhere/cnn2.safetensors"], "/nowhere/cnn2.safetensors"),
        (["train", "--epochs", "0"], "epochs=0"),
        (["demo", "--epochs", "0"], "epochs=0"),
        (["export", "cnn3", "cnn3.onnx"], "cnn3"),
        (["summary", "--c1", "0"], "c1=0"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_is_wrong(arguments: list[str], told: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert told in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def relu(x:\n", "SyntaxError"),
        ("raise OSError('no such library')\n", "no such library"),
        ("raise SystemExit(0)\n", "SystemExit"),
    ],
)
@pytest.mark.parametrize("command", [["verify", "--op", "relu"], ["exhaust", "--op", "relu"]], ids=" ".join)
def test_a_module_that_cannot_be_imported_is_wrong_usage_and_no_verdict(
    command: list[str], source: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "unready.py").write_text(source)
    result = run(command[0], "unready:relu", *command[1:], cwd=tmp_path)
    assert (result.returncode, told in result.stderr) == (2, True)
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(gpu()[0], reason="there is a GPU")
def test_without_a_gpu_nothing_is_checked_and_it_says_why() -> None:
    result = run("verify", "--backend", "cuda", "--op", "relu")
    assert (result.returncode, "no GPU" in result.stdout) == (3, True)


def test_standard_output_is_json_whatever_the_kernel_prints(tmp_path: Path) -> None:
    (tmp_path / "talkative.py").write_text(
        "from kernelproof import spec\n\ndef relu(x):\n    print('hello')\n    return spec.relu(x)\n"
    )
    result = run(
        "verify", "talkative:relu", "--op", "relu", "--level", "L1", "--examples", "5", "--json", "-", cwd=tmp_path
    )
    assert json.loads(result.stdout)["verdict"] == "proven"


def test_summary_and_info_are_readable_by_programs() -> None:
    shapes = json.loads(run("summary", "--image-size", "8", "--json").stdout)["shapes"]
    assert shapes["conv1"] == ["n", 32, 8, 8]
    assert json.loads(run("info", "--json").stdout)["threads"] >= 1


# Interrupted while Python itself starts, a program has no say in how it ends: told by a line, it has started.
STARTED = "import runpy; print(flush=True); runpy.run_module('kernelproof', run_name='__main__', alter_sys=True)"


@pytest.mark.parametrize("seconds", [0, 0.05, 3])
@pytest.mark.parametrize("arguments", [["verify", "--examples", "100000"], ["train", "--epochs", "100000"]])
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="only POSIX interrupts processes so")
def test_ctrl_c_ends_it_with_130_and_nothing_half_written(arguments: list[str], seconds: float, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STARTED, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        preexec_fn=_listens,
    )
    assert process.stdout is not None
    process.stdout.readline()
    started = _cpu_seconds(process.pid)
    while _cpu_seconds(process.pid) < started + seconds:  # Its own time on a core: other processes may be in its way.
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate()
    if seconds > 1:
        assert (process.returncode, "Traceback" in complaint) == (130, False)
    assert process.returncode in (130, -signal.SIGINT), complaint
    assert list(tmp_path.iterdir()) == []


def _listens() -> None:
    """Where tests run in the background Ctrl-C is ignored, which a process hands on to those it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_what_is_no_file_is_not_written_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused = run("verify", "--json", "pipe", cwd=tmp_path)
    assert (refused.returncode, "file 'pipe', a device or pipe" in refused.stderr) == (2, True)
    assert (tmp_path / "pipe").is_fifo()


def test_a_plan_for_no_images_costs_nothing() -> None:
    assert run("plan", "conv2d", "--x", "0x1x3x3", "--weight", "1x1x1x1").returncode == 0


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `verify` writes."""
    folder = tmp_path_factory.mktemp("written")
    (folder / "mine.py").write_text("def relu(x):\n    return x.clip(0)\n\ndef wrong(x):\n    return x * 0\n")
    reports = "--json", "report.json", "--certificate", "certificate.json"
    assert run("verify", "mine:relu", "--op", "relu", "--examples", "2", *reports, cwd=folder).returncode == 0
    assert run("verify", "mine:wrong", "--op", "relu", "--examples", "2", cwd=folder).returncode == 1
    next((folder / ".kernelproof/cases").glob("*.json")).rename(folder / "case.json")
    return folder


def test_a_report_goes_to_standard_output(written: Path) -> None:
    shown = run("report", "report.json", "--json", "-", cwd=written)
    assert (shown.returncode, json.loads(shown.stdout)["kernel"]) == (0, "mine:relu")


@pytest.mark.parametrize(
    ("command", "file", "change", "status"),
    [
        ("report", "report.json", lambda data: data["results"][0].update(cases="many"), 2),
        ("report", "report.json", lambda data: data["results"][0].update(level=None), 2),
        ("report", "report.json", lambda data: data["results"][0].update(operator="conv9d"), 2),
        ("replay", "case.json", lambda data: data.update(law=["a", "b"]), 2),
        ("replay", "case.json", lambda data: data.update(kernel=7), 2),
        ("check-certificate", "certificate.json", lambda data: data["declared"].update(unheard=1), 2),
        ("check-certificate", "certificate.json", lambda data: data.update(examples=-1), 2),
        ("check-certificate", "certificate.json", lambda data: data.update(operators={}), 1),
    ],
)
def test_a_file_that_was_tampered_with_is_refused(
    command: str, file: str, change: Callable[[dict[str, Any]], None], status: int, written: Path
) -> None:
    data = json.loads((written / file).read_text())
    change(data)
    (written / "changed").write_text(json.dumps(data))
    refused = run(command, "changed", cwd=written)
    assert (refused.returncode, "Traceback" in refused.stderr) == (status, False)
