"""Hypothesis profiles, chosen with `--hypothesis-profile dev | ci | nightly`, ci unless told otherwise; threads."""

import contextlib
import importlib.util
import os

# The laws ask for up to three threads. numba starts one a core, and in each worker of pytest-xdist as many again: here
# three at least, whatever the machine, and no more than the worker's share of its cores.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("NUMBA_NUM_THREADS", str(max(3, (os.cpu_count() or 1) // _workers)))
# Those may be more than there are cores, with other workers beside: a thread with nothing to do shall sleep. By itself
# OpenMP's goes round in a loop for a while, on a core that others need. libgomp reads this when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hypothesis  # noqa: E402
import pytest  # noqa: E402

from kernelproof.proofs.verify import PROFILES  # noqa: E402 - may import numba, which then reads the above

for name, examples in PROFILES.items():
    # The same problems on every run of ci, so that a red test stays red; nightly looks for new ones.
    hypothesis.settings.register_profile(
        name, max_examples=examples, deadline=None, derandomize=name != "nightly", print_blob=True
    )
hypothesis.settings.load_profile("ci")


def pytest_configure(config: pytest.Config) -> None:
    """hypothesis mixes in numbers from the source of the modules that are loaded: which, a worker's other tests decide.

    No setting turns it off. nightly is there to be surprised.
    """
    if config.getoption("--hypothesis-profile") != "nightly":
        with contextlib.suppress(ImportError):  # Where they have another place, they are mixed in.
            from hypothesis.internal.conjecture import providers
            from hypothesis.internal.constants_ast import Constants

            providers._get_local_constants = Constants


collect_ignore = [] if importlib.util.find_spec("torch") else ["test_against_torch.py"]
"""PyTorch is no dependency: where it is missing the comparison with it does not exist."""
