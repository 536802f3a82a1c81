"""Plans by measurement, for those who ask for it: of the algorithms that may be taken, the one that was fastest."""

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from kernelproof.spec.errors import ParameterError

from .files import write_whole

_ROUNDS = 5
_SAMPLE = 0.01
"""Seconds of a sample, at least: a shorter call is repeated."""

_file: Path | None = None


@contextlib.contextmanager
def tuned(file: str | Path) -> Iterator[None]:
    """In this block a call takes the algorithm that was measured fastest for its problem, not the one estimated so.

    A problem is measured when it is first met, each algorithm a few times in turn, and remembered in this JSON file,
    under all that the answer depends on: shapes, options, precision, threads, workspace limit, processor, kernels'
    source. Raises ParameterError for a file that holds something else.
    """
    global _file
    before, _file = _file, Path(file)
    try:
        _read(_file)
        yield
    finally:
        _file = before


def plans() -> Path | None:
    """The file of what was measured, if calls are to take that."""
    return _file


def fastest(file: Path, key: str, candidates: Mapping[str, Callable[[], object]]) -> str:
    """The name of the candidate that was fastest under this key, measured now if the file does not tell."""
    known = _read(file)
    if known.get(key) not in candidates:
        seconds = measured(candidates)
        known[key] = min(seconds, key=lambda name: seconds[name])
        write_whole(file, json.dumps(known, indent=1, sort_keys=True).encode())
    return known[key]


def measured(candidates: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of a call of each, which take turns."""
    repeats = {}
    for name, candidate in candidates.items():
        candidate()  # Compiled, and its memory is there.
        repeats[name] = max(1, round(_SAMPLE / max(_seconds(candidate, 1), 1e-7)))
    samples = [{name: _seconds(each, repeats[name]) for name, each in candidates.items()} for _ in range(_ROUNDS)]
    return {name: statistics.median(sample[name] for sample in samples) for name in candidates}


def _seconds(call: Callable[[], object], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - started) / times


def _read(file: Path) -> dict[str, str]:
    if not file.exists():
        return {}
    try:
        held = json.loads(file.read_text())
    except ValueError:
        held = None
    if not isinstance(held, dict):
        raise ParameterError(
            "tuned", f"file {str(file)!r}", "one that tuned has written, or a new one", "Name another."
        )
    return held
