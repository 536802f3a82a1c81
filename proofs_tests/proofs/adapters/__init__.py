"""Other people's operators as subjects, each imported only when it is asked for: `verify("torch")`.

An adapter translates the arguments and nothing else. What its framework does not have it declines, so the report says
unsupported.
"""

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from kernelproof.spec.errors import ParameterError, UnsupportedError

if TYPE_CHECKING:
    from kernelproof.proofs.subject import Subject


@dataclass(frozen=True)
class Adapter:
    """A module here with a `SUBJECT`, the packages that it needs, the extra that installs them."""

    module: str
    packages: tuple[str, ...]
    extra: str

    @property
    def installed(self) -> bool:
        """Whether its packages are there; none of them is imported."""
        return all(importlib.util.find_spec(package) for package in self.packages)

    @property
    def versions(self) -> dict[str, str]:
        """The version of each of its packages."""
        return {package: version(package) for package in self.packages}


ADAPTERS: Mapping[str, Adapter] = {
    "torch": Adapter("torch", ("torch",), "torch"),
    "onnxruntime": Adapter("onnx_runtime", ("onnxruntime", "onnx"), "onnx"),
    "onnx.reference": Adapter("onnx_reference", ("onnx",), "onnx"),
    "jax": Adapter("jax", ("jax", "jaxlib"), "jax"),
    "tinygrad": Adapter("tinygrad", ("tinygrad",), "tinygrad"),
}
"""By the names that `verify` takes."""

OWN = ("cpu", "cuda")
"""This project's own backends, which need no adapter."""


def require(name: str) -> Adapter:
    """The adapter of that name; raises ParameterError if there is none, UnsupportedError if it is not installed."""
    if name not in ADAPTERS:
        known = ", ".join((*OWN, *ADAPTERS))
        raise ParameterError("verify", f"backend {name!r}", f"one of {known}", "Correct the name.")
    if not ADAPTERS[name].installed:
        raise missing(name, "not installed", " and ".join(ADAPTERS[name].packages))
    return ADAPTERS[name]


def load(name: str) -> "Subject":
    """The subject of that name; raises what `require` does."""
    return importlib.import_module(f"{__name__}.{require(name).module}").SUBJECT


def framework(package: str, name: str) -> Any:
    """The package that an adapter stands on; raises UnsupportedError if it cannot be imported."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise missing(name, str(error), package) from error


def missing(name: str, why: str, needed: str) -> UnsupportedError:
    """The error for an adapter that cannot run here."""
    remedy = f"Run: pip install 'kernelproof[{ADAPTERS[name].extra}]'."
    return UnsupportedError("verify", f"backend {name!r}: {why}", needed, remedy)
