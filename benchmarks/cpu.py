"""The CPU kernels beside everybody else's: `make bench` takes minutes, `make bench-full` hours; both write docs/cpu.md.

Every kernel is held to its rounding bound on the very problem that it is then timed on; one that is wrong is told and
not timed. All libraries have the same number of threads, live in one process and take turns.
"""

import functools
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
import llvmlite.binding
import numba
import numpy as np
from memory import memory
from networks import networks
from page import write_page
from peers import calls, installed
from shapes import EXTRA, FLOOR, GOALS, GRADIENTS, LETTERS, NETWORKS, OTHERS, SCALING, flops, traffic
from startup import startup
from timing import Samples, bandwidth, interleaved, peak, restart_with

from kernelproof import kernels
from kernelproof.kernels.cpu.convolution import planner
from kernelproof.kernels.cpu.vectors import LANES
from kernelproof.kernels.jit_cache import sources_hash
from kernelproof.models.host import write_whole
from kernelproof.proofs import Problem
from kernelproof.proofs.algorithms import planned
from kernelproof.proofs.at_scale import worst_error
from kernelproof.proofs.judging import LawBroken

DOCS = Path(__file__).parents[1] / "docs"
Precision = Literal["strict", "fast"]
Part = Literal["convolutions", "others", "networks", "startup", "memory", "scaling"]


@dataclass
class Bench:
    """How to measure, and what became of the samples and of the kernels that were wrong."""

    threads: int
    rounds: int
    only: re.Pattern[str]
    samples: Samples = field(default_factory=Samples)
    wrong: list[str] = field(default_factory=list)

    def rows(self, group: str, name: str, text: str, *problems: Problem) -> Iterator[dict[str, Any]]:
        """Each problem on our kernels at both precisions and on every peer, but those wrong or not asked for."""
        for problem in problems:
            if self.only.search(f"{group}: {name}: {text}: {problem.operator}"):
                try:
                    row = self._row(group, name, text, problem)
                except LawBroken as wrong:
                    self.wrong.append(f"{problem.operator} of {text}: {wrong}")
                    print(f"WRONG {self.wrong[-1]}", flush=True)
                else:
                    print(_line(row), flush=True)
                    yield row

    def _row(self, group: str, name: str, text: str, problem: Problem) -> dict[str, Any]:
        arrays = _normal(problem)
        taken: dict[Precision, dict[str, Any]] = {each: _taken(problem, each) for each in ("strict", "fast")}
        # What fast does not do otherwise is not measured twice.
        distinct: list[Precision] = ["strict", "fast"] if taken["fast"] != taken["strict"] else ["strict"]
        ours = {}
        for each in distinct:
            kernel = functools.partial(getattr(kernels, problem.operator.replace(".", "_")), precision=each)
            of_class = replace(problem, precision=taken[each].get("rounds_as"))
            taken[each]["error_over_bound"] = worst_error(kernel, of_class)
            args, kwargs = problem.call(lambda *args, **kwargs: (args, kwargs), arrays)
            ours[each] = functools.partial(kernel, *args, **kwargs)
        result = ours["strict"]()
        theirs = calls(problem, arrays, self.threads, result[0] if isinstance(result, tuple) else result)
        timings = interleaved({f"ours {each}": call for each, call in ours.items()} | theirs, self.rounds, self.samples)
        timed = {each: asdict(timing) for each, timing in timings.items()}
        return {
            "group": group, "name": name, "text": text, "operator": problem.operator, "threads": self.threads,
            "flops": flops(problem), "traffic": traffic(problem),
            "ours": {each: taken[each] | timed[f"ours {each}"] for each in distinct},
            "peers": {each: timed[each] for each in theirs},
            "goals": {each: GOALS.get((name, problem.operator, each), FLOOR) for each in distinct},
        }  # fmt: skip


def _taken(problem: Problem, precision: Precision) -> dict[str, Any]:
    """What the planner takes; nothing for operators that it does not plan."""
    if problem.operator not in GRADIENTS:
        return {}
    asked = planned(problem)
    taken = planner.decide(asked, precision).taken
    return {"algorithm": taken.name, "rounds_as": taken.rounds_as, "workspace": taken.workspace(asked)}


def _normal(problem: Problem) -> dict[str, np.ndarray]:
    """Normally distributed values, classes where classes are meant."""
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        name: generator.standard_normal(shape, np.float32) for name, shape in problem.array_shapes.items()
    }
    if "target" in arrays:
        arrays["target"] = generator.integers(0, problem.shapes["logits"][1], problem.shapes["target"])
    return arrays


def _line(row: Mapping[str, Any]) -> str:
    peers = {name: each["seconds"] for name, each in row["peers"].items()}
    fastest = min(peers, key=peers.__getitem__)
    ratios = "  ".join(
        f"{name} {1e3 * each['seconds']:8.3f} ms x{peers[fastest] / each['seconds']:5.2f} of {row['goals'][name]:.2f}"
        for name, each in row["ours"].items()
    )
    return f"{row['name']:<18} {row['operator']:<22} {fastest:<20} {1e3 * peers[fastest]:8.3f} ms  {ratios}"


def measured(bench: Bench, full: bool, parts: tuple[Part, ...]) -> Iterator[tuple[str, Any]]:
    """What was asked for, part by part."""
    work: dict[Part, Callable[[], Any]] = {
        "convolutions": lambda: list(_convolutions(bench, full)),
        "others": lambda: [
            row for each in OTHERS for row in bench.rows("others", each.name, str(each), each.problem())
        ],
        "networks": lambda: networks(bench.threads, bench.rounds, bench.samples),
        "startup": lambda: startup(bench.rounds, bench.samples),
        "memory": memory,
        "scaling": lambda: [*_by_size(bench), *_by_threads(bench)] if full else [],
    }
    for part in parts:
        yield part, work[part]()


def _convolutions(bench: Bench, full: bool) -> Iterator[dict[str, Any]]:
    for group, convolutions in {"shapes": (*LETTERS, *EXTRA), **(NETWORKS if full else {})}.items():
        for each in convolutions:
            yield from bench.rows(group, each.name, str(each), *map(each.problem, GRADIENTS))


def _by_size(bench: Bench) -> Iterator[dict[str, Any]]:
    for axis, convolutions in SCALING.items():
        for each in convolutions:
            for row in bench.rows(f"scaling {axis}", each.name, str(each), each.problem("conv2d")):
                yield row | {"scaled": getattr(each, axis)}


def _by_threads(bench: Bench) -> Iterator[dict[str, Any]]:
    for each in (LETTERS[0], LETTERS[3]):
        for count in range(1, bench.threads + 1):
            numba.set_num_threads(count)
            fewer = replace(bench, threads=count)
            for row in fewer.rows("scaling threads", each.name, str(each), each.problem("conv2d")):
                yield row | {"scaled": count}


def machine(threads: int, settings: Mapping[str, str]) -> dict[str, Any]:
    """Where and with what it was measured."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else [platform.processor()]
    packages = ("kernelproof", "numba", "llvmlite", "numpy")
    return {
        "processor": names[0] if names else platform.machine(),
        "architecture": llvmlite.binding.get_host_cpu_name(), "lanes": LANES, "cores": os.cpu_count(),
        "threads": threads, "threading_layer": numba.threading_layer(), "platform": platform.platform(),
        "python": platform.python_version(), "versions": {name: version(name) for name in packages} | installed(),
        "kernels": sources_hash(), "settings": dict(settings), "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }  # fmt: skip


def main(
    *,
    full: bool = False,
    threads: int = os.cpu_count() or 1,
    rounds: int = 7,
    only: str = "",
    parts: Annotated[tuple[Part, ...], cyclopts.Parameter(negative=(), consume_multiple=True)] = (
        "convolutions",
        "others",
        "networks",
        "startup",
        "memory",
        "scaling",
    ),
    folder: Path = DOCS,
) -> int:
    """Measure and write cpu.json, cpu.md and images/cpu-*.svg. Exit status 1 if a kernel was wrong.

    Parameters
    ----------
    full
        Also the convolutions of whole networks and how times scale.
    threads
        For every library.
    rounds
        Samples of each.
    only
        A regular expression: convolutions and other operators whose group, name, sizes or operator it is found in.
    parts
        What to measure.
    folder
        Where to write.
    """
    settings = restart_with(threads)
    load = os.getloadavg()[0]
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(threads, rounds, re.compile(only))
    data: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/cpu.py", *sys.argv[1:]]),
        "peak": {str(count): peak(count) for count in range(1, threads + 1)},
        "bandwidth": {str(count): bandwidth(count) for count in range(1, threads + 1)},
    }
    # After each part, for all of them take long.
    for part, found in measured(bench, full, parts):
        data[part] = found
        data |= {"machine": machine(threads, settings), "load": {"before": load, "after": os.getloadavg()[0]}}
        data |= {"samples": asdict(bench.samples), "wrong": bench.wrong}
        write_whole(folder / "cpu.json", json.dumps(data, indent=1).encode())
        write_page(data, folder)
    print(f"Written: {folder / 'cpu.md'}; of {bench.samples.taken} samples {bench.samples.rejected} were taken again")
    return int(bool(bench.wrong))


if __name__ == "__main__":
    raise SystemExit(cyclopts.run(main))
