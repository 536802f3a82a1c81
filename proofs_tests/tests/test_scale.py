"""Work in parts: they add up whatever the order, on any executor, and a lost worker loses nothing."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelproof import spec
from kernelproof.executors import working
from kernelproof.proofs import Failure, Report, Result, verify
from kernelproof.proofs.jobs import PART, Job, merge, share

RATIOS = st.one_of(st.just(()), st.tuples(*[st.integers(0, 99)] * 3))
FAILURES = st.builds(
    Failure, st.text(max_size=3), st.text(max_size=3), st.just(()), st.dictionaries(st.just("got"), st.integers(0, 2))
)
RESULTS = st.builds(
    Result,
    operator=st.just("conv2d"), law=st.just("law"), level=st.just("L1"), statement=st.just("It holds."),
    cases=st.integers(0, 99), vacuous=st.integers(0, 99), unsupported=st.integers(0, 99),
    # Whole numbers, for sums of floats are not associative.
    seconds=st.integers(0, 99).map(float),
    worst_ratio=st.none() | st.floats(0, 1), escape=st.none() | st.floats(0, 1),
    hit=st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)), failure=st.none() | FAILURES, ratios=RATIOS,
    declined=st.sampled_from(["", "it has no groups", "it has no bias"]),
)  # fmt: skip


@given(RESULTS, RESULTS, RESULTS)
def test_results_merge_in_any_grouping_and_order(one: Result, two: Result, three: Result) -> None:
    assert merge(merge(one, two), three) == merge(one, merge(two, three))
    assert merge(one, two) == merge(two, one)


@given(st.integers(1, 5 * PART), st.integers(0, 9))
def test_parts_are_the_whole_job(examples: int, seed: int) -> None:
    parts = Job("relu", "law", examples, seed).parts()
    assert sum(part.examples for part in parts) == examples
    assert all(0 < part.examples <= PART for part in parts)
    assert len(set(parts)) == len(parts)


@given(st.integers(0, 50), st.integers(1, 9))
def test_shards_are_the_whole_work(length: int, count: int) -> None:
    shards = [share(range(length), f"{which}/{count}") for which in range(1, count + 1)]
    assert sorted(each for shard in shards for each in shard) == list(range(length))


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "1/2/3", "one/two", ""])
def test_a_wrong_shard_is_told(shard: str) -> None:
    with pytest.raises(spec.ParameterError, match="I/N"):
        verify(spec.relu.__call__, "relu", shard=shard)


def test_shards_of_a_verification_are_the_whole_of_it() -> None:
    whole = verify(spec.relu.__call__, "relu", examples=5)
    shards = [verify(spec.relu.__call__, "relu", examples=5, shard=f"{which}/3") for which in (1, 2, 3)]
    assert sorted(said(result) for shard in shards for result in shard.results) == sorted(map(said, whole.results))


def test_reports_of_shards_are_shown_as_the_report_of_the_whole(tmp_path: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kernelproof", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    verified = ["verify", "--op", "flatten.dx", "--level", "L1", "--level", "L2", "--level", "L4", "--examples", "3"]
    for shard in ("1/2", "2/2"):
        assert command(*verified, "--shard", shard, "--json", f"{shard[0]}.json").returncode == 0
    assert command(*verified, "--json", "whole.json").returncode == 0
    both = command("report", "2.json", "1.json", "--json", "both.json", "--html", "both.html")
    assert (both.returncode, "cpu: proven - 3 laws of 1 operator" in both.stdout) == (0, True)
    assert (tmp_path / "both.html").exists()
    alone = command("report", "2.json")
    assert (alone.returncode, "missing shards 1/2" in alone.stdout) == (3, True)
    assert command("report", "both.json").returncode == 0
    read = [Report.from_json(json.loads((tmp_path / f"{name}.json").read_text())) for name in ("both", "whole")]
    assert lines(read[0]) == lines(read[1])
    for wrong in (["1.json", "1.json"], ["1.json", "both.html"], ["nothing.json"], []):
        assert command("report", *wrong).returncode == 2


def test_a_seed_means_the_same_whatever_is_loaded(tmp_path: Path) -> None:
    script = (
        "import sys, zlib; from kernelproof.proofs import verify; from kernelproof.spec import conv2d; seen = []\n"
        "def kernel(*arrays, **options):\n    seen.append(repr(arrays)); return conv2d(*arrays, **options)\n"
        "verify(kernel, 'conv2d', level='L1', examples=200); print(zlib.crc32(''.join(seen).encode()))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", before + script], cwd=tmp_path, capture_output=True, check=True
        ).stdout
        for before in ("", "import kernelproof.command_line, kernelproof.proofs.museum\n")
    }
    assert len(runs) == 1


def said(result: Result) -> tuple[Any, ...]:
    """All but how long it took."""
    return result.operator, result.law, result.verdict, result.cases, result.vacuous, sorted(result.hit.items())


def lines(report: Report) -> list[tuple[Any, ...]]:
    return [said(result) for result in report.results]


class Losing(Executor):
    """Loses every other job's worker, as a machine that dies would."""

    def __init__(self) -> None:
        self.given = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.given += 1
        if self.given % 2:
            future.set_exception(ConnectionError("the worker is gone"))
        else:
            future.set_result(fn(*args, **kwargs))
        return future


def test_a_lost_worker_loses_nothing() -> None:
    here = verify(spec.relu.__call__, "relu", level="L1", examples=2 * PART + 1)
    assert lines(verify(spec.relu.__call__, "relu", level="L1", examples=2 * PART + 1, executor=Losing())) == lines(
        here
    )


def test_wrong_usage_is_told_from_afar() -> None:
    with working(1, apart=True) as executor, pytest.raises(spec.ParameterError, match="supports"):
        verify(spec.relu.__call__, "relu", level="L1", supports="nonsense", executor=executor)


def ends_its_process(x: Any) -> Any:
    """Right, except that once, on a worker, it ends the process it is in: afterwards the mark is there."""
    mark = Path(os.environ["KERNELPROOF_TEST_MARK"])
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return spec.relu(x)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a process is killed by a signal")
@pytest.mark.parametrize("engine", ["processes", "dask"])
def test_a_worker_killed_in_mid_run_loses_nothing(engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine == "dask":
        pytest.importorskip("distributed")
    here = verify(spec.relu.__call__, "relu", level=["L1", "L4"], examples=20)
    mark = tmp_path / "killed"
    monkeypatch.setenv("KERNELPROOF_TEST_MARK", str(mark))
    with working(2, engine) as executor:
        spread = verify(ends_its_process, "relu", level=["L1", "L4"], examples=20, executor=executor)
    assert mark.exists()
    assert lines(spread) == lines(here)


def test_dask_keeps_a_kernel_apart_too(tmp_path: Path) -> None:
    pytest.importorskip("distributed")

    def crashes(x: Any) -> Any:
        os._exit(7)

    with working(1, "dask") as executor:
        report = verify(crashes, "relu", level="L2", examples=5, time_limit=60, executor=executor)
    [failure] = [result.failure for result in report.failures]
    assert failure is not None
    assert "ended its process (exit status 7)" in failure.message


def test_a_scheduler_without_dask_is_wrong_usage() -> None:
    with pytest.raises(spec.ParameterError, match="--executor dask"), working(2, scheduler="tcp://nobody:1"):
        pass
