"""Saved cases: written once, read without executing anything, rerun, and tried first by the next `verify`."""

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelproof import spec
from kernelproof.proofs import verify
from kernelproof.proofs.cases import Case, load, load_all, replay
from kernelproof.proofs.report import Report, reproduction, smallest_case
from kernelproof.proofs.subject import subject_of
from kernelproof.replay_command import save
from kernelproof.spec import ParameterError


def drops_the_bias(x: Any, weight: Any, bias: Any = None, **options: Any) -> Any:
    return spec.conv2d(x, weight, None, **options)


@pytest.fixture
def case() -> Case:
    report = verify(drops_the_bias, "conv2d", level="L1", examples=20)
    return Case.of(report)[0]


def test_a_case_is_read_as_it_was_written(case: Case, tmp_path: Path) -> None:
    (tmp_path / case.file_name).write_text(case.text())
    assert load_all(tmp_path) == [case]
    assert repr(case.problem_again()) == case.problem


def test_a_failure_found_twice_is_one_file(tmp_path: Path) -> None:
    report = verify(drops_the_bias, "conv2d", level="L1", examples=20)
    assert save(report, tmp_path / "new") == save(report, tmp_path / "new")
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_replay_tells_broken_from_mended(case: Case) -> None:
    broken = replay(case, drops_the_bias)
    assert broken is not None
    assert str(broken) == case.message
    assert replay(case, spec.conv2d.__call__) is None


def test_what_was_declared_is_declared_again(tmp_path: Path) -> None:
    declared = {"dtypes": ("float32", "float64"), "supports": "stride[0] == stride[1]"}
    report = verify(drops_the_bias, "conv2d", level=("L1", "L7"), examples=20, **declared)
    assert len(report.failures) > 1
    for result in report.failures:
        assert f"problem, dtypes={declared['dtypes']}, supports={declared['supports']!r})" in reproduction(
            result, report
        )

    def mended(*arrays: Any, stride: tuple[int, int], **options: Any) -> Any:
        assert stride[0] == stride[1], "it was never declared for this"
        return spec.conv2d(*arrays, stride=stride, **options)

    save(report, tmp_path)
    for case in load_all(tmp_path):
        assert replay(case, drops_the_bias) is not None
        assert replay(case, mended) is None


def test_limits_may_be_a_function_and_its_name() -> None:
    problem = Case.of(verify(drops_the_bias, "conv2d", level="L1", examples=20))[0].problem_again()
    assert subject_of("cpu", "conv2d", supports="builtins:dict").supports(problem)
    with pytest.raises(ParameterError, match="supports='builtins:nothing'"):
        subject_of("cpu", "conv2d", supports="builtins:nothing")


def test_a_case_of_another_type_is_tried_with_it() -> None:
    def twice(x: Any) -> Any:
        return 2 * x

    report = verify(twice, "relu", level="L1", examples=5, dtypes=("float64",))
    [case, *_] = Case.of(report)
    assert replay(case, twice) is not None
    assert "dtypes=('float64',)" in reproduction(report.failures[0], report)


def test_a_declined_case_is_no_pass(case: Case) -> None:
    def declines(*arrays: Any, **options: Any) -> Any:
        raise NotImplementedError

    with pytest.raises(NotImplementedError):
        replay(case, declines)


def test_the_next_verify_tries_it_first(case: Case) -> None:
    report = verify(drops_the_bias, "conv2d", level="L1", cases=[case])
    assert report.results[0].cases == 0
    assert report.failures[0].failure is not None
    assert report.failures[0].failure.problem == case.problem


@pytest.mark.parametrize("problem", ["__import__('os').abort()", "Problem(operator=print())", "Problem(1)", "1 +"])
def test_a_case_executes_nothing(case: Case, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "case.json"
    file.write_text(Case(case.kernel, case.law, problem).text())
    with pytest.raises(spec.ParameterError, match=r"case\.json"):
        load(file)


@pytest.mark.parametrize(("right", "wrong"), [
    ("operator='conv2d'", "operator='conv3d'"), ("family='whole'", "family='half'"), ("'weight': (", "'weight': (7, "),
    ("output=(", "output=(7, "), ("seed=", "seed=-1 + 0 * "), ("'stride': (", "'stride': (0, "),
])  # fmt: skip
def test_a_problem_that_no_operator_has_is_wrong_usage(case: Case, right: str, wrong: str, tmp_path: Path) -> None:
    assert right in case.problem
    (tmp_path / "case.json").write_text(replace(case, problem=case.problem.replace(right, wrong)).text())
    with pytest.raises(ParameterError, match=r"case\.json"):
        load(tmp_path / "case.json")
    command = [sys.executable, "-m", "kernelproof", "replay", "--cases", str(tmp_path)]
    came = subprocess.run(command, capture_output=True, check=False)
    assert (came.returncode, came.stdout) == (2, b"")


def test_from_verify_to_replay_on_the_command_line(tmp_path: Path) -> None:
    module = tmp_path / "broken_kernel.py"
    module.write_text("import numpy as np\n\ndef relu(x):\n    return np.where(x > 0, x, np.zeros_like(x))\n")

    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "kernelproof", *arguments]
        came = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return came.returncode, came.stdout

    assert run("replay") == (3, "no cases in .kernelproof/cases\n")
    assert run("verify", "broken_kernel:relu", "--op", "relu", "--level", "L4")[0] == 1
    status, lines = run("replay")
    assert status == 1
    assert lines.split()[0] == "fails"
    assert "the specification nan" in lines
    module.write_text("import numpy as np\n\ndef relu(x):\n    return np.where(x < 0, np.zeros_like(x), x)\n")
    status, lines = run("replay")
    assert (status, lines.split()[0]) == (0, "holds")
    module.unlink()
    status, lines = run("replay")
    assert (status, lines.split()[0]) == (1, "fails")
    assert "No module named" in lines


OBJECT = """
from kernelproof import spec

class Linear:
    def __init__(self, loses=True):
        self.loses = loses

    def forward(self, x, weight, bias):
        self.seen = x, weight
        return spec.linear(x, weight, None if self.loses else bias)

    def backward(self, dy):
        x, weight = self.seen
        return dy @ weight, dy.T @ x, dy.sum(0)

linear = Linear()
"""


@pytest.mark.parametrize("built", ["own.linear", "own.Linear()"])
def test_what_an_object_fails_at_fails_when_it_is_pasted(
    built: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(OBJECT)
    monkeypatch.syspath_prepend(tmp_path)
    own: Any = importlib.import_module("own")
    try:
        kernel = own.linear if built == "own.linear" else own.Linear()
        report = verify(kernel, "linear", level="L1", examples=20)
    finally:
        del sys.modules["own"]
    assert report.kernel == built.replace(".", ":")
    code = reproduction(report.failures[0], report)
    pasted = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "LawBroken: linear" in pasted.stderr, pasted.stderr
    (folder := tmp_path / "cases").mkdir()
    save(report, folder)
    command = [sys.executable, "-m", "kernelproof", "replay", *map(str, folder.iterdir())]
    fails = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert fails.returncode == 1, fails.stderr
    (tmp_path / "own.py").write_text(OBJECT.replace("loses=True", "loses=False"))
    mended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert mended.returncode == 0, mended.stdout + mended.stderr


@pytest.mark.parametrize(("deed", "told"), [("os._exit(0)", "ended its process"), ("time.sleep(60)", "did not return")])
def test_what_ends_a_process_says_so_when_it_is_pasted(deed: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        f"import os, time\n\ndef relu(x):\n    if x.size > 5:\n        {deed}\n    return x * (x > 0)\n"
    )
    command = ["verify", "own:relu", "--op", "relu", "--level", "L1", "--examples", "20", "--time-limit", "2"]
    refuted = subprocess.run(
        [sys.executable, "-m", "kernelproof", *command, "--json", "report.json"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refuted.returncode == 1, refuted.stderr
    report = Report.from_json(json.loads((tmp_path / "report.json").read_text()))
    failed = next(each for each in report.failures if each.operator == "relu")
    assert smallest_case(failed).startswith("A case" if told == "did not return" else "The smallest case")
    code = reproduction(failed, report)
    pasted = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told in pasted.stderr.splitlines()[-1], pasted.stderr
