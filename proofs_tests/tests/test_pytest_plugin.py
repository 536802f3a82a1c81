"""The pytest plugin, as a project meets it: items, verdicts, messages, expected failures, shards."""

import subprocess
import sys
from itertools import chain

import pytest

from kernelproof.proofs.verify import PROFILES, laws_of

pytest_plugins = ["pytester"]

KERNELS = """
import numpy as np
from kernelproof import proof, spec

def dx(dy, x):
    return np.where(x >= 0, dy, np.zeros_like(dy))

def declines(x):
    raise NotImplementedError("no")

test_relu = proof(spec.relu.__call__, op="relu", name="kernelproof.spec:relu")
test_wrong = proof(dx, op="relu.dx")
test_declined = proof(declines, op="relu")

def test_of_the_project_itself():
    pass
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(test_kernels=KERNELS)
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    return pytester


def run(project: pytest.Pytester, *options: str) -> pytest.RunResult:
    return project.runpytest_subprocess("-p", "no:cacheprovider", "--kernelproof-examples=20", *options)


def test_a_right_kernel_passes_every_law_and_a_project_keeps_its_own_tests(project: pytest.Pytester) -> None:
    result = run(project, "-k", "test_relu or itself", "--kernelproof-level=L1", "--kernelproof-level=L4")
    outcomes = result.parseoutcomes()
    assert (outcomes.pop("passed"), set(outcomes)) == (len(laws_of("relu", ["L1", "L4"])) + 1, {"deselected"})


def test_a_broken_law_tells_the_case_and_is_saved(project: pytest.Pytester) -> None:
    result = run(project, "-k", "test_wrong", "--kernelproof-level=L5")
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines([
        "relu.dx: <gradient(dy), v> is *, the derivative along v is *",
        "law: *",
        "from test_kernels import dx as kernel",
        "problem = Problem(operator='relu.dx'*",
        "Saved; to try it again: kernelproof replay *",
    ])  # fmt: skip
    assert "Traceback" not in result.stdout.str()
    [case] = (project.path / ".kernelproof" / "cases").iterdir()
    command = [sys.executable, "-m", "kernelproof", "replay", str(case)]
    again = subprocess.run(command, cwd=project.path, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout.split()[0]) == (1, "fails")


def test_a_declined_law_is_skipped_and_not_passed(project: pytest.Pytester) -> None:
    result = run(project, "-k", "test_declined", "--kernelproof-level=L1", "-rs")
    assert result.parseoutcomes()["skipped"] == len(laws_of("relu", ["L1"]))
    assert "passed" not in result.parseoutcomes()
    result.stdout.fnmatch_lines(["*the kernel declines all * problems: no"])


def test_expected_failures_are_strict(project: pytest.Pytester) -> None:
    laws = [law.name for law in laws_of("relu.dx", ["L5"])]
    file = project.path / "known.txt"
    file.write_text("# what we know\n\nrelu.dx is_the_exact_derivative  the gradient at zero is ours\n")
    options = ("-k", "test_wrong", "--kernelproof-level=L5", "--kernelproof-xfail=known.txt")
    assert laws == ["is_the_exact_derivative"]
    assert run(project, *options).parseoutcomes()["xfailed"] == 1
    kernels = project.path / "test_kernels.py"
    kernels.write_text(kernels.read_text().replace("x >= 0", "x > 0"))
    result = run(project, *options)
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(["*XPASS(strict)*the gradient at zero is ours*"])


@pytest.mark.parametrize("line", ["relu.dx no_such_law reason", "conv9d is_the_exact_derivative reason", "relu.dx"])
def test_an_expected_failure_that_nobody_has_is_wrong_usage(project: pytest.Pytester, line: str) -> None:
    (project.path / "known.txt").write_text(line)
    result = run(project, "--kernelproof-xfail=known.txt")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*known.txt:1: '{line}': needs *"])


@pytest.mark.parametrize("option", ["--kernelproof-xfail=nowhere.txt", "--kernelproof-examples=0"])
def test_an_option_that_cannot_be_followed_is_wrong_usage(project: pytest.Pytester, option: str) -> None:
    result = run(project, option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{option.replace('=', ' ')}: *"])


def test_shards_share_the_laws_out_and_leave_other_tests(project: pytest.Pytester) -> None:
    def collected(*options: str) -> list[str]:
        lines = run(project, "--collect-only", "-q", *options).outlines
        return [line for line in lines if "[" in line]

    everything = collected()
    shards = [collected(f"--kernelproof-shard={which}/3") for which in (1, 2, 3)]
    assert sorted(chain(*shards)) == sorted(everything)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    result = run(project, "--kernelproof-shard=4/3")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_profiles_are_those_of_verify(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--help")
    result.stdout.fnmatch_lines([f"*--kernelproof-profile={{{','.join(PROFILES)}}}*"])
    for name, examples in PROFILES.items():
        assert f"{name} {examples}" in " ".join(result.stdout.str().split())


def test_the_plugin_imports_nothing_heavy() -> None:
    script = (
        "import sys, kernelproof.pytest_plugin;"
        "print({'numpy', 'numba', 'hypothesis', 'z3', 'kernelproof.spec', 'kernelproof.proofs'} & set(sys.modules))"
    )
    came = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert came.stdout.strip() == "set()"
