"""Every configuration up to a size: none left out, none twice, judged as the law would, resumed where it was left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernelproof import spec
from kernelproof.executors import working
from kernelproof.proofs import Problem, subject_of
from kernelproof.proofs.configurations import CHOICES, Configurations
from kernelproof.proofs.exhaust import CHUNK, LAW, Progress, Scope, exhaust, name_of_run
from kernelproof.proofs.judging import specified
from kernelproof.proofs.loops import reference


def every(configurations: Configurations) -> list[Problem]:
    return [configurations.problem(index, 0, "float32") for index in range(configurations.count)]


def steps(problem: Problem) -> int:
    """Its distance from the smallest, from the problem alone."""
    x, options = problem.shapes["x"], problem.options
    n, _, h, w = x
    k, of_group, r, s = problem.shapes["weight"]
    groups = options["groups"]
    free = [n, of_group, k // groups, groups, h, w, r, s, *options["stride"], *options["dilation"]]
    return sum(free) - len(free) + sum(map(sum, options["padding"])) + ("bias" in problem.shapes)


def legal_convolutions(most: int) -> Iterable[tuple[Any, ...]]:
    """Counted another way: all combinations, those that PyTorch's size formula refuses left out."""
    sizes, pads = range(1, most + 1), range(most + 1)
    lines = [
        (h, r, stride, dilation, a, b)
        for h, r, stride, dilation, a, b in product(sizes, sizes, sizes, sizes, pads, pads)
        if h + a + b - dilation * (r - 1) - 1 >= 0
    ]
    channels = [(g, c, k) for g, c, k in product(sizes, repeat=3) if g * c <= most and g * k <= most]
    return product(sizes, channels, (False, True), lines, lines)


def test_every_convolution_is_there_once_and_the_smallest_first() -> None:
    problems = every(Configurations("conv2d", 2, 4))
    assert len({repr(replace(problem, seed=0)) for problem in problems}) == len(problems) == 2743
    away = [steps(problem) for problem in problems]
    assert away == sorted(away)
    assert away[-1] == 4
    assert Configurations("conv2d", 2).count == sum(1 for _ in legal_convolutions(2)) == 359_120


def test_there_are_as_many_as_the_page_says() -> None:
    assert Configurations("conv2d", 5).count == 67_837_952_000
    assert Configurations("conv2d", 5, 12).count == 19_735_596


@pytest.mark.parametrize("row", CHOICES)
def test_every_configuration_is_legal(row: str) -> None:
    configurations = Configurations(row, 2)
    for index in range(0, configurations.count, max(1, configurations.count // 200)):
        problem = configurations.problem(index, 0, "float32")
        result = problem.call(problem.spec, problem.arrays())
        assert (result[0] if isinstance(result, tuple) else result).shape == problem.output


@pytest.mark.parametrize("operator", [name for name in spec.OPERATORS if name.partition(".")[0] in CHOICES])
def test_the_loops_are_the_specification(operator: str) -> None:
    configurations = Configurations(operator, 3)
    for index in range(0, configurations.count, max(1, configurations.count // 150)):
        problem = configurations.problem(index, 0, "float32")
        arrays = problem.arrays()
        for came, right in zip(reference(problem, arrays), specified(problem, arrays, np.int64), strict=True):
            assert np.array_equal(came, right)


@pytest.mark.parametrize("operator", ["conv2d", "conv2d.dx", "conv2d.dweight", "max_pool2d.dx"])
def test_a_failing_configuration_fails_the_law_on_the_same_numbers(operator: str) -> None:
    seen = []

    def watch(*arguments: Any, **options: Any) -> Any:
        seen.append([np.array(each) for each in arguments if isinstance(each, np.ndarray)])
        return spec.find(operator)(*arguments, **options)

    subject = subject_of(watch, operator)
    scope = Scope(operator, 3, 2)
    assert next(exhaust(subject, scope)).result.verdict == "proven"
    for index, arrays in enumerate(seen):
        drawn = scope.configurations.problem(index, 0, "float32").arrays().values()
        assert all(np.array_equal(a, b) for a, b in zip(arrays, drawn, strict=True))


def wrong_in_one(x: Any, weight: Any, bias: Any = None, **options: Any) -> Any:
    """Wrong where both sides of the image are padded, unlike, and the stride is 2: five steps away."""
    y = spec.conv2d(x, weight, bias, **options)
    return y + 1 if options["padding"] == ((0, 0), (1, 2)) and options["stride"] == (1, 2) else y


def test_the_first_failure_is_the_smallest_and_reproduces() -> None:
    *_, last = exhaust(subject_of(wrong_in_one, "conv2d"), Scope("conv2d", 3))
    failure = last.result.failure
    assert failure is not None
    problem = eval(failure.problem, {"Problem": Problem})
    assert steps(problem) == 4
    assert problem.options["padding"] == ((0, 0), (1, 2))
    with pytest.raises(AssertionError):
        LAW.check(wrong_in_one, problem)


def test_unsupported_is_no_pass() -> None:
    *_, last = exhaust(subject_of(wrong_in_one, "conv2d", supports="stride == (1, 1)"), Scope("conv2d", 3, 4))
    outside = sum(problem.options["stride"] != (1, 1) for problem in every(Configurations("conv2d", 3, 4)))
    assert (last.result.verdict, last.result.unsupported) == ("proven", outside)
    *_, last = exhaust(subject_of(wrong_in_one, "conv2d", supports="False"), Scope("conv2d", 3, 3))
    assert last.result.verdict == "unsupported"


def counted(progress: Progress) -> tuple[int, ...]:
    return progress.done, progress.result.cases, progress.result.vacuous


def test_it_goes_on_from_a_checkpoint_to_the_same_result() -> None:
    subject, scope = subject_of(spec.max_pool2d.__call__, "max_pool2d"), Scope("max_pool2d", 3, 5)
    *first, straight = exhaust(subject, scope)
    assert len(first) > 1
    half = Progress.of(first[0].text())
    *_, resumed = exhaust(subject, scope, half)
    assert counted(resumed) == counted(straight)
    assert scope.size == straight.result.cases + straight.result.vacuous


POOLING = Scope("max_pool2d", 3, 5)


@pytest.fixture(scope="module")
def pooling() -> Progress:
    """All of it, by the CPU kernel, in one go."""
    *_, last = exhaust(subject_of("cpu", "max_pool2d"), POOLING)
    return last


def test_shards_do_the_same_work(pooling: Progress) -> None:
    shards = [replace(POOLING, shard=f"{which}/3") for which in (1, 2, 3)]
    assert sum(shard.size for shard in shards) == POOLING.size == POOLING.configurations.count
    done = [[*exhaust(subject_of("cpu", "max_pool2d"), shard)][-1].result.cases for shard in shards]
    assert sum(done) == pooling.result.cases


@pytest.mark.parametrize("engine", ["processes", "dask"])
def test_workers_do_the_same_work(engine: Any, pooling: Progress) -> None:
    if engine == "dask":
        pytest.importorskip("distributed")
    with working(2, engine) as executor:
        *_, spread = exhaust(subject_of("cpu", "max_pool2d"), POOLING, executor=executor)
    assert counted(spread) == counted(pooling)


def test_another_kernel_or_scope_is_another_run() -> None:
    scope = Scope("conv2d", 3)
    names = {
        name_of_run(subject_of(kernel, "conv2d"), each)
        for kernel, each in [("cpu", scope), (wrong_in_one, scope), ("cpu", replace(scope, draws=2))]
    }
    assert len(names) == 3


KERNELS = """
import os, time
from kernelproof import spec

def crashes(x, weight, bias=None, **options):
    if options["dilation"] == (2, 1) and options["stride"] == (1, 2):
        os._exit(7)
    return spec.conv2d(x, weight, bias, **options)

def right(x, weight, bias=None, **options):
    return spec.conv2d(x, weight, bias, **options)
"""


def command(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    (folder / "my_kernels.py").write_text(KERNELS)
    return subprocess.Popen(
        [sys.executable, "-m", "kernelproof", "exhaust", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("engine", ["processes", "dask"])
def test_a_kernel_that_ends_its_worker_is_told_with_its_configuration(engine: str, tmp_path: Path) -> None:
    if engine == "dask":
        pytest.importorskip("distributed")
    limits = "--max-size", "3", "--steps", "3", "--workers", "1"
    run = command(tmp_path, "my_kernels:crashes", *limits, "--executor", engine)
    out, errors = run.communicate()
    assert run.returncode == 1
    assert engine == "dask" or errors == ""  # Dask tells of each worker that it starts again.
    assert "ended its process (exit status 7)" in out
    assert "'stride': (1, 2), 'padding': ((0, 0), (0, 0)), 'dilation': (2, 1)" in out
    assert len(list((tmp_path / ".kernelproof" / "cases").iterdir())) == 1


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is a signal")
def test_ctrl_c_leaves_a_checkpoint_that_is_taken_up(tmp_path: Path) -> None:
    arguments = ("my_kernels:right", "--max-size", "4", "--steps", "4", "--workers", "2")
    run, notes = command(tmp_path, *arguments), tmp_path / ".kernelproof" / "exhaust"
    while not notes.exists() and run.poll() is None:
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    out, errors = run.communicate()
    assert run.returncode == 130
    assert "the same command goes on from there" in out
    assert "Traceback" not in errors
    [file] = notes.iterdir()
    done = Progress.of(file.read_text()).done
    assert done * CHUNK < Configurations("conv2d", 4, 4).count
    again = command(tmp_path, *arguments)
    out, _ = again.communicate()
    assert again.returncode == 0
    assert "configurations are done already" in out
    assert not list(notes.iterdir())
