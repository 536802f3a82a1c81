"""`kernelproof info`: what to send along with a report."""

import json as json_format
import os
import platform
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import llvmlite.binding
import numba

from kernelproof.kernels.dispatch import certificates
from kernelproof.kernels.gpu import gpu

from .command_line import screen

PACKAGES = ("kernelproof", "numpy", "numba", "numba-cuda", "hypothesis", "jaxtyping", "beartype", "onnx", "onnxruntime")


def info(*, json: bool = False) -> None:
    """Show versions, CPU threads, GPU and the kernels' certificates: what to send along with a report.

    Parameters
    ----------
    json
        Print it as JSON instead.
    """
    found = _environment()
    if json:
        print(json_format.dumps(found, indent=2))
    else:
        _show(found)


def _environment() -> dict[str, Any]:
    """Versions, platform, CPU threads, GPU, which kernels hold a certificate."""
    certified: dict[str, list[str]] = {}
    for (_, name), state in certificates().items():
        certified.setdefault(name, []).append(state)
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": llvmlite.binding.get_host_cpu_name(),
        "threads": numba.get_num_threads(),
        "cores": os.cpu_count(),
        "gpu": gpu()[1],
        "certificates": {
            name: ", ".join(f"{count} {state}" for state, count in Counter(states).items())
            for name, states in certified.items()
        },
    }


def _show(found: dict[str, Any]) -> None:
    """The same, to read."""
    for name, value in {**found["packages"], **{k: v for k, v in found.items() if not isinstance(v, dict)}}.items():
        screen.print(f"{name:<12} {'not installed' if value is None else value}", markup=False)
    for name, states in found["certificates"].items():
        screen.print(f"certificates {name}: {states}", markup=False)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
