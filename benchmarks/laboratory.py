"""A copy of the project in which one module at a time is changed and held to tests, each in a process of its own."""

import importlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

Stage: TypeAlias = tuple[Sequence[str], str]
"""Files of tests, and a choice among them as pytest's -k."""

Tests: TypeAlias = Sequence[Stage]
"""One after the other, until a test fails."""

HEAVY = ("beartype", "hypothesis", "jaxtyping", "numba", "numpy", "pytest")
"""Imported once, before the process of each mutant is forked."""


class Laboratory:
    """A copy of the project in which modules are changed and tested; use as a context manager."""

    def __init__(self, original: Path) -> None:
        self.original = original
        self._seconds: dict[Stage, float] = {}

    def __enter__(self) -> "Laboratory":
        self._folder = tempfile.TemporaryDirectory(prefix="mutants-")
        self.root = Path(self._folder.name) / "project"
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=self.original, capture_output=True, text=True, check=True,
        )  # fmt: skip
        for name in filter(None, listed.stdout.split("\0")):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            if (self.original / name).exists():
                shutil.copy2(self.original / name, self.root / name, follow_symlinks=False)
        # As the tests' own conftest.py says, which comes too late where numba is here already.
        os.environ.setdefault("NUMBA_NUM_THREADS", str(max(3, os.cpu_count() or 1)))
        for name in HEAVY:
            importlib.import_module(name)
        return self

    def __exit__(self, *exception: object) -> None:
        self._folder.cleanup()

    def seconds_without_fault(self, module: str, stage: Stage) -> float:
        """How long tests take that know this module, as it is; raises SystemExit if one fails."""
        if stage not in self._seconds:
            started = time.perf_counter()
            if broken := self.test(module, (self.root / module).read_text(), {stage: None}):
                raise SystemExit(f"{module}: {broken} fails without any mutant")
            self._seconds[stage] = time.perf_counter() - started
        return self._seconds[stage]

    def test(self, module: str, source: str, limits: Mapping[Stage, float | None]) -> str:
        """The test that fails when the module has this source, "" if none does, in these stages of so many seconds."""
        file = self.root / module
        clean = file.read_bytes()
        with tempfile.TemporaryDirectory() as cache:
            try:
                file.write_text(source)
                return self._run(module, limits, cache)
            finally:
                file.write_bytes(clean)

    def _run(self, module: str, limits: Mapping[Stage, float | None], cache: str) -> str:
        fork = multiprocessing.get_context("fork")
        here, there = fork.Pipe(duplex=False)
        child = fork.Process(target=_tests, args=(self.root, module, list(limits), cache, there))
        child.start()
        there.close()
        try:
            for limit in limits.values():
                if not here.poll(limit):
                    return "it does not end"
                if killer := here.recv():
                    return killer
            return ""
        except EOFError:
            child.join()
            return f"exit status {child.exitcode}"
        finally:
            child.kill()
            child.join()


class _FirstFailure:
    """A pytest plugin: what failed first."""

    name = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.name = self.name or report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.name = self.name or f"{report.nodeid}, when it is imported"


def _tests(root: Path, module: str, tests: Tests, cache: str, answer: Any) -> None:
    """In a process of its own: the module's tests until one fails."""
    os.chdir(root)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    links = str(root / "_typing")
    sys.path.insert(0, links)
    # Two versions of a module in one second would have one date, and so one file of byte code.
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": links, "PYTHONDONTWRITEBYTECODE": "1"}
    if module.startswith("kernels/"):
        os.environ["XDG_CACHE_HOME"] = cache  # Kernels are compiled anew.
    import pytest

    first = _FirstFailure()
    for files, choice in tests:
        paths = [str(root / "proofs_tests" / "tests" / name) for name in files]
        status = pytest.main(
            ["-x", "-q", "-p", "no:cacheprovider", "--assert=plain", "-k", choice, *paths], plugins=[first]
        )
        package = importlib.import_module("kernelproof")
        if not str(package.__file__).startswith(str(root)):
            raise ImportError(f"{package.__file__} was tested, and not the copy in {root}")
        other = (
            "it cannot be imported" if status == pytest.ExitCode.USAGE_ERROR else f"pytest's exit status {int(status)}"
        )
        answer.send(first.name or ("" if status == 0 else other))
        if status:
            break
    os._exit(0)
