"""A kernel in a process of its own: a crash, a signal or a hang is an answer, and not the end of the run."""

import contextlib
import functools
import io
import math
import multiprocessing
import os
import pickle
import signal
import struct
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

import cloudpickle
import numpy as np

from kernelproof.spec import UnsupportedError

from .judging import Differences, evaluate, said, told
from .laws import LAWS, Law, LawBroken, Observation, Reference, rounding, rounds_within_the_derived_bound
from .problems import Problem
from .subject import Subject

_STARTING = threading.Lock()
"""Held while a child is started: what is set aside for that belongs to the whole process."""


TRIED = 8
"""Earlier problems at which a kernel raised, and others, that a failing one is tried after, each in a new process."""

PATIENCE = 20
"""Seconds after which that ends."""

LARGEST = 2**30
"""Bytes of an answer, at most."""

STARTING = 600.0
"""Seconds in which a process has begun and has the kernel, or it has none."""

SOON = 1024
"""Elements of the arrays of a problem that is soon judged twice; most are such."""


class Isolated:
    """Checks laws in a child process, which is started anew when a kernel has ended it.

    Only the problem travels: the child draws the arrays from its seed. There a kernel has its judge in reach, so what
    it gives for the law of rounding, which all operators have, is judged here once more, where that is soon done. Use
    as a context manager. Without a time limit it waits as long as the kernel takes.
    """

    def __init__(self, subject: Subject, time_limit: float | None) -> None:
        self._subject, self._time_limit = subject, time_limit
        self._process: Any = None
        self._refusal = ""
        self._before: list[tuple[Problem, bool]] = []
        self.hung: Problem | None = None

    def __enter__(self) -> "Isolated":
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def __call__(self, law: Law, problem: Problem) -> Observation:
        """Check the law in the child; raises what the check raised there, LawBroken if the kernel ended the child."""
        if why := self.refusal():
            raise NotImplementedError(why)
        # Each hang costs the whole time limit, so it is not shrunk: the case that hung stands.
        if self.hung is not None and problem != self.hung:
            return Observation(vacuous=True)
        outcome = self._asked(law.name, problem)
        if not isinstance(outcome, Observation):
            raise _no_answer(problem)
        self._before.append((problem, False))
        if law is rounds_within_the_derived_bound and sum(map(math.prod, problem.array_shapes.values())) <= SOON:
            self._judge(problem)
        return outcome

    def _judge(self, problem: Problem) -> None:
        """Raise LawBroken if what the kernel gives does not stand before a judge whom it cannot reach."""
        given = self._asked(_RESULTS, problem)
        if not isinstance(given, list):
            raise _no_answer(problem)
        kernel = self._subject.kernel(problem.operator)
        rounded = rounding(kernel, problem)
        try:
            came = tuple(np.ndarray(shape, dtype, buffer=data) for dtype, shape, data in given)
            Reference.of(kernel, rounded, rounded.arrays()).judge(came)
        except LawBroken as broken:
            broken.args = (f"{broken} (so another process finds; its own judge, which it can reach, does not)",)
            raise
        except Exception as error:
            raise _no_answer(problem) from error

    def _asked(self, what: str, problem: Problem) -> Any:
        """What the child answers; raises what it raised there, LawBroken if none came that is one."""
        outcome: Any = None
        if self.hung is None and (self._process is None or not self._process.is_alive()):
            self._start()
        try:
            if self.hung is None:
                outcome = self._answer(what, problem)
        except TimeoutError:
            self._end(patience=0)
            self.hung = problem
        except (EOFError, ConnectionError):
            process: Any = self._process
            process.join(self._time_limit)
            if process.exitcode is not None:
                raise LawBroken(
                    f"{problem.operator}: the kernel ended its process ({self._end_of_child()})", problem,
                    time_limit=self._time_limit or STARTING,
                ) from None  # fmt: skip
            self._end(patience=0)  # It has closed the pipe and goes on.
            self.hung = problem
        except Exception as error:
            self._end(patience=0)  # What is left in the pipe is no answer either.
            raise _no_answer(problem) from error
        if self.hung is not None:
            message = f"{problem.operator}: the kernel did not return within {self._time_limit:g} s"
            raise LawBroken(message, problem, time_limit=self._time_limit, shrunk=False)
        if not isinstance(outcome, tuple):
            return outcome
        try:
            kind, message, index, values = outcome
            refused = kind == "unsupported" or "refusal" in values
            broken = LawBroken(message, problem, tuple(index), **values)
        except (TypeError, ValueError):
            raise _no_answer(problem) from None
        self._before.append((problem, refused))
        if kind == "unsupported":
            raise NotImplementedError(message)
        raise broken

    def anew(self, law: Law, problem: Problem) -> LawBroken | None:
        """How the law breaks in a new process: on this problem alone, or after one of those that came before it.

        None if it does not, nor after any of those tried: first those that the kernel raised at, then the last ones.
        """
        raised = sorted({each for each, did in self._before if did}, key=lambda each: len(repr(each)))
        last = [each for each, _ in reversed(self._before) if each != problem]
        started, tried = time.monotonic(), list(dict.fromkeys([*raised[:TRIED], *last]))[: 2 * TRIED]
        for after in (None, *tried):
            if broken := self._breaks_after(after, law, problem):
                return broken
            if time.monotonic() - started > PATIENCE:
                break
        return None

    def _breaks_after(self, after: Problem | None, law: Law, problem: Problem) -> LawBroken | None:
        self._end()
        if after is not None:
            with contextlib.suppress(LawBroken, NotImplementedError):
                self(law, after)
        try:
            self(law, problem)
        except LawBroken as broken:
            broken.after = after
            return broken
        except NotImplementedError:
            return None
        return None

    def refusal(self) -> str:
        """Why the kernel cannot be brought to a process of its own, if it cannot; the process has begun then."""
        if self._process is None and not self._refusal:
            try:
                self._start()
            except (TypeError, ValueError, AttributeError, pickle.PicklingError) as error:
                self._refusal = str(error)
        return self._refusal and f"it cannot be brought to a process of its own: {self._refusal}"

    def _answer(self, what: str, problem: Problem) -> Any:
        """Send the problem and wait for an answer; raises TimeoutError if none came, EOFError if none will."""
        with contextlib.suppress(ConnectionError):  # The child is dead: the answer will not come, and tells.
            self._connection.send((what, problem))
        return _received(self._connection, self._time_limit)

    def _start(self) -> None:
        # What was set or unset since the server began is so in the child too.
        pickled, self._refusal, self._before = self._pickled, "", []
        self._connection, theirs = _context().Pipe()
        arguments = pickled, dict(os.environ), theirs
        self._process = _started(arguments)
        theirs.close()
        # Starting is not the kernel's time.
        try:
            self._refusal = str(_received(self._connection, STARTING))
        except TimeoutError:
            self._end(patience=0)
            self._refusal = f"it has not begun within {STARTING:g} s"
        except (EOFError, OSError, pickle.UnpicklingError):
            pass

    @functools.cached_property
    def _pickled(self) -> bytes:
        # Functions of __main__ and lambdas are kernels too: the standard pickle would refuse them.
        return cloudpickle.dumps(self._subject)

    def _end(self, patience: float = 5) -> None:
        """End the child: by itself, so that it leaves nothing behind, or after so many seconds by force."""
        if self._process is not None:
            self._connection.close()
            self._process.join(patience)
            self._process.kill()
            self._process.join()
            self._process = None

    def _end_of_child(self) -> str:
        status = self._process.exitcode
        if status >= 0:
            return f"exit status {status}"
        try:
            return signal.Signals(-status).name
        except ValueError:  # One of the real-time signals between those that have names.
            return f"signal {-status}"


def _started(arguments: tuple[Any, ...]) -> Any:
    """A child at work; once more where a kernel has ended the server that children are copies of."""
    for again in (True, False):
        process = _context().Process(target=_serve, args=arguments, daemon=True)
        try:
            with _STARTING, _as_no_daemon(), _as_no_script():
                process.start()
        except (EOFError, OSError):
            if not again:
                raise
        else:
            return process
    raise AssertionError


def _no_answer(problem: Problem) -> LawBroken:
    return LawBroken(f"{problem.operator}: the kernel's process sent what is no answer", problem)


class _Data(pickle.Unpickler):
    """Reads what a child sends. A kernel can reach the pipe, and may say what it likes: nothing of it is run here."""

    def find_class(self, module: str, name: str) -> Any:
        """What an answer is made of, and no more."""
        known = {(each.__module__, each.__qualname__): each for each in (Observation, Differences)}
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an answer")
        return known[module, name]


def _received(connection: Connection, time_limit: float | None) -> Any:
    """What the child has sent; raises TimeoutError if that is not complete in time, EOFError if it never will be."""
    until = None if time_limit is None else time.monotonic() + time_limit
    if sys.platform == "win32":
        if not connection.poll(time_limit):
            raise TimeoutError
        return _Data(io.BytesIO(connection.recv_bytes(LARGEST))).load()
    # `recv_bytes` waits for the rest of a message once it has begun, and a kernel can begin one.
    (size,) = struct.unpack("!i", _bytes(connection, 4, until))
    if not 0 <= size <= LARGEST:
        raise pickle.UnpicklingError(f"a message of {size} bytes is no answer")
    return _Data(io.BytesIO(_bytes(connection, size, until))).load()


def _bytes(connection: Connection, count: int, until: float | None) -> bytes:
    """The next bytes of the pipe, by the time `until`."""
    read = bytearray()
    while len(read) < count:
        if not connection.poll(None if until is None else max(0.0, until - time.monotonic())):
            raise TimeoutError
        if not (came := os.read(connection.fileno(), count - len(read))):
            raise EOFError
        read += came
    return bytes(read)


@functools.cache
def _context() -> Any:
    """How children begin: copies of a server that has loaded the laws once, where the system can copy a process."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@contextlib.contextmanager
def _as_no_daemon() -> Iterator[None]:
    """Dask's workers are daemons, which may not have children, lest they be orphaned: ours ends with its pipe."""
    settings: dict[str, Any] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    daemon = settings.pop("daemon", None)
    try:
        yield
    finally:
        if daemon is not None:
            settings["daemon"] = daemon


@contextlib.contextmanager
def _as_no_script() -> Iterator[None]:
    """The child would run the caller's script again; it needs nothing of it, for the kernel travels by value."""
    script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _serve(pickled: bytes, environment: dict[str, str], connection: Connection) -> None:
    """The child: checks what comes until the parent closes the connection."""
    import warnings

    warnings.simplefilter("ignore", RuntimeWarning)
    # The server's own, as it was when the server began, may hold what was unset since.
    os.environ.clear()
    os.environ.update(environment)
    # What the kernel prints is no part of a report on standard output.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        subject = cloudpickle.loads(pickled)
    except Exception as error:  # Its module is found here under no name, for example.
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send("")
    while True:
        try:
            what, problem = connection.recv()
            connection.send(_outcome(what, subject, problem))
        except (EOFError, OSError, KeyboardInterrupt):
            return  # The parent is gone, or the kernel has closed the pipe: there is nobody to answer.


_RESULTS = "results"
"""What is asked for the kernel's own results, and not for what a law finds of them."""


def _outcome(what: str, subject: Subject, problem: Problem) -> Any:
    kernel = subject.kernel(problem.operator)
    try:
        if what != _RESULTS:
            return LAWS[what].check(kernel, problem)
        rounded = rounding(kernel, problem)
        results = evaluate(kernel, rounded, rounded.arrays())
        return [(each.dtype.str, each.shape, each.tobytes()) for each in results]
    except (UnsupportedError, NotImplementedError) as declined:
        return "unsupported", said(declined), (), {}
    except LawBroken as broken:
        return "broken", str(broken), broken.index, broken.values
    except BaseException as error:
        broken = told(problem, error)
        return "broken", str(broken), (), broken.values
