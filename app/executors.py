"""Where the work is done: in this process, in worker processes, or on a Dask cluster."""

import contextlib
import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, Literal, TypeAlias, TypeVar

import cloudpickle

from kernelproof.spec import ParameterError
from kernelproof.spec.window import whole

Engine: TypeAlias = Literal["processes", "dask"]

T = TypeVar("T")


@contextlib.contextmanager
def working(
    workers: int = 1,
    engine: Engine = "processes",
    scheduler: str | None = None,
    kernel: str | None = None,
    *,
    apart: bool = False,
) -> Iterator[Executor | None]:
    """So many workers; None, this process, for a single one unless it has to be `apart`. Raises ParameterError.

    `scheduler` is the address of a Dask cluster that there is already; without one, workers are started here. The
    module of `kernel` ("module:name") travels to Dask's workers, what it imports has to be installed there.
    """
    whole("verify", "workers", workers, 1)
    if scheduler is not None and engine != "dask":
        raise ParameterError("verify", f"--scheduler {scheduler}", "--executor dask", "Add it.")
    if engine == "dask":
        with _dask(workers, scheduler, kernel) as executor:
            yield executor
    elif workers == 1 and not apart:
        yield None
    else:
        with _processes(workers) as executor:
            yield executor


@contextlib.contextmanager
def _processes(workers: int) -> Iterator[Executor]:
    with processes(workers) as executor:
        try:
            yield executor
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            _kill_children()
            raise


@contextlib.contextmanager
def processes_of_their_own(workers: int) -> Iterator[Executor]:
    """So many tasks at a time, each in a fresh process, which takes no other task with it when it ends."""
    with _Apart(workers) as executor:
        try:
            yield executor
        except BaseException:
            executor.end()
            raise


class _Apart(ThreadPoolExecutor):
    """Threads that each wait for a process, in which a task is done."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._workers, self._starting, self._ended = workers, threading.Lock(), False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Do it in a process of its own."""
        return super().submit(self._done_apart, fn, *args, **kwargs)

    def _done_apart(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        with processes(1, of=self._workers) as process:
            with self._starting:
                if self._ended:
                    raise CancelledError
                future = process.submit(fn, *args, **kwargs)
            return future.result()

    def end(self) -> None:
        """Begin no more tasks, and end those that are begun."""
        self._ended = True
        self.shutdown(wait=False, cancel_futures=True)
        while True:
            # Ctrl-C again would leave the process that is just being started, and Python waits for it at its own end.
            with contextlib.suppress(KeyboardInterrupt), self._starting:
                _kill_children()
                return


def _kill_children() -> None:
    for process in multiprocessing.active_children():
        process.kill()


@contextlib.contextmanager
def _dask(workers: int, scheduler: str | None, kernel: str | None) -> Iterator[Executor]:
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise ParameterError(
            "verify", "--executor dask", "Dask, which is not installed", "Run: pip install 'kernelproof[dask]'."
        ) from None
    if kernel is not None:
        cloudpickle.register_pickle_by_value(importlib.import_module(kernel.partition(":")[0]))
    if scheduler is not None:
        with Client(scheduler) as client:
            yield client.get_executor()
        return
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address="localhost:0",  # Any port that is free: two runs may be here at a time.
            env=_share_of_cores(workers),
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client.get_executor()


def processes(workers: int, of: int | None = None) -> ProcessPoolExecutor:
    """Fresh processes, some `of` those at work, which leave Ctrl-C to this one and take no more threads than cores."""
    return ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(_share_of_cores(of or workers),),
    )


def _begin(environment: Mapping[str, str]) -> None:
    os.environ |= environment
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _share_of_cores(workers: int) -> dict[str, str]:
    """Workers that each take all cores would only take them from each other."""
    return dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"), str(max(1, (os.cpu_count() or 1) // workers)))
