"""Where an operator runs: the arrays decide, or a `Backend` that was asked for by name."""

import functools
import importlib
import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, get_args

import numpy as np

from kernelproof.spec.blocks import Block
from kernelproof.spec.errors import DtypeError, ParameterError, UnsupportedError
from kernelproof.spec.operator import Operator
from kernelproof.spec.ops import OPERATORS
from kernelproof.spec.wiring import Step

from .contract import KERNELS, Precision
from .remembered import EarlierCalls, key_of
from .source import kernels_hash, specification_hash

Certified: TypeAlias = Literal["current", "stale", "none"]
"""Whether a kernel holds a certificate of its present source and specification, of earlier ones, or none."""

_PRECISIONS = get_args(Precision)
ROUNDED = tuple(f"{row}{gradient}" for row in ("conv2d", "linear") for gradient in ("", ".dx", ".dweight"))
"""Operators that round more where a precision allows it, on the GPU."""
_MODULES = {"cpu": "kernelproof.kernels.cpu", "cuda": "kernelproof.kernels.cuda"}


class Backend:
    """All operators on one kind of processor, with the rounding allowed: `cpu(spec.conv2d, x, weight, padding=1)`.

    A chain takes it as its way to perform operators. Importing the kernels waits for the first call.
    """

    def __init__(self, name: str, precision: Precision = "strict") -> None:
        self.name = name
        self.precision: Precision = precision
        # One for each precision, which remembers its calls.
        self._others: dict[Precision, Self] = {precision: self}

    def at(self, precision: Precision) -> Self:
        """The same processor with that rounding allowed; raises ParameterError."""
        if precision not in _PRECISIONS:
            needed = " or ".join(map(repr, _PRECISIONS))
            raise ParameterError("kernelproof", f"precision={precision!r}", needed, "Choose one of them.")
        if precision not in self._others:
            self._others[precision] = type(self)(self.name, precision)
            self._others[precision]._others = self._others
        return self._others[precision]

    def kernel(self, operator: Operator[...]) -> Callable[..., Any]:
        """This backend's checked kernel for `operator`; raises UnsupportedError if it has none."""
        importlib.import_module(_MODULES[self.name])
        try:
            kernel = KERNELS[operator.__name__, self.name]
        except KeyError:
            raise UnsupportedError(
                operator.__name__, f"backend {self.name!r}", "a kernel for it", "Use kernelproof.spec."
            ) from None
        return kernel if self.precision == "strict" else functools.partial(kernel, precision=self.precision)

    def rounds(self, operator: Operator[...]) -> bool:
        """Whether this backend's kernel for `operator` rounds more where the precision allows it."""
        self.kernel(operator)
        return KERNELS[operator.__name__, self.name].chooses  # type: ignore[attr-defined]

    def _unchecked(self, operator: Operator[...]) -> Callable[..., Any]:
        """The kernel's bare entry, for arguments that were checked."""
        return KERNELS[operator.__name__, self.name].unchecked(self.precision)  # type: ignore[attr-defined]

    def __call__(self, operator: Operator[...], *args: Any, **kwargs: Any) -> Any:
        return operator.perform(self.kernel(operator), *args, **kwargs)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, Precision]]:
        return _named, (self.name, self.precision)  # What is remembered stays here.

    def __repr__(self) -> str:
        return f"<backend {self.name}, {self.precision}>"


class _Cpu(Backend):
    """The CPU, which checks calls that are alike once, and performs a convolution and what follows it at once."""

    def __init__(self, name: str, precision: Precision = "strict") -> None:
        super().__init__(name, precision)
        self.remembered = EarlierCalls()

    def __call__(self, operator: Operator[...], *args: Any, **kwargs: Any) -> Any:
        key, given = key_of(operator.__name__, args, kwargs), (*args, *kwargs.values())
        way = self.remembered.find(key)
        if way is not None:
            return way(given)
        kernel = self.kernel(operator)
        result = operator.perform(kernel, *args, **kwargs)
        self.remembered.keep(key, given, operator.door(*args, **kwargs), self._unchecked(operator))
        return result

    def blocks(self, steps: Sequence[Step]) -> tuple[Block, ...]:
        """A chain's steps, with those that are performed at once together."""
        importlib.import_module(_MODULES[self.name])
        return importlib.import_module("kernelproof.kernels.cpu.fusion").blocks(steps)


class _Cuda(Backend):
    """The GPU: arrays go through the door as device arrays and come back as the caller's kind, numpy's included.

    What calls launch is kept as graphs (kernels/cuda/host/recorded.py), a chain's as one.
    """

    @functools.cached_property
    def _calls(self) -> Any:
        importlib.import_module(_MODULES[self.name])
        return importlib.import_module("kernelproof.kernels.cuda.host.recorded").Calls()

    def __call__(self, operator: Operator[...], *args: Any, **kwargs: Any) -> Any:
        return self._calls(operator, self.kernel, args, kwargs)

    def whole(self) -> Any:
        """What a chain that is compiled for this calls in place of its `vjp`."""
        importlib.import_module(_MODULES[self.name])
        return importlib.import_module("kernelproof.kernels.cuda.host.chains").Batches()

    def blocks(self, steps: Sequence[Step]) -> tuple[Block, ...]:
        """A chain's steps, with those that are performed at once together."""
        importlib.import_module(_MODULES[self.name])
        return importlib.import_module("kernelproof.kernels.cuda.fusion").blocks(steps)


cpu, cuda = _Cpu("cpu"), _Cuda("cuda")


def _named(name: str, precision: Precision) -> Backend:
    return backend(name).at(precision)


def backend(name: str) -> Backend:
    """The backend called "cpu" or "cuda"; raises ParameterError."""
    if name not in _MODULES:
        raise ParameterError("kernelproof", f"backend {name!r}", " or ".join(map(repr, _MODULES)), "Correct the name.")
    return cuda if name == "cuda" else cpu


def certificates() -> dict[tuple[str, str], Certified]:
    """Which kernels hold a certificate, by (operator, certificate): "cpu", "cuda", and "cuda-fast" and so on.

    Certificates are written by `kernelproof verify --backend cpu --certificate FILE` and shipped beside this file.
    """
    states: dict[tuple[str, str], Certified] = {}
    less = {f"cuda-{precision}": ROUNDED for precision in _PRECISIONS if precision != "strict"}
    for name, operators in {**dict.fromkeys(_MODULES, tuple(OPERATORS)), **less}.items():
        path = Path(__file__).parent / "certificates" / f"{name}.json"
        held = json.loads(path.read_text()) if path.exists() else {"source": None, "operators": {}}
        is_current = held["source"] == kernels_hash(name.partition("-")[0])
        for operator in operators:
            proven = held["operators"].get(operator)
            if proven is None or any(law["verdict"] != "proven" for law in proven["laws"].values()):
                states[operator, name] = "none"
            else:
                same = is_current and proven["specification"] == specification_hash(operator)
                states[operator, name] = "current" if same else "stale"
    return states


def backend_of(operator: str, arguments: Iterable[Any]) -> Backend:
    """The CPU for numpy arrays, the GPU for arrays with `__cuda_array_interface__`; raises DtypeError for others."""
    places = set()
    for each in arguments:
        if isinstance(each, np.ndarray):
            places.add("cpu")
        elif is_device_array(each):
            places.add("cuda")
        elif hasattr(each, "dtype") and hasattr(each, "shape") and not isinstance(each, np.generic):
            raise DtypeError(
                operator,
                f"an array of type {type(each).__module__}.{type(each).__name__}",
                "numpy arrays, or device arrays with __cuda_array_interface__",
                "Convert it first, e.g. numpy.asarray(x).",
            )
    if len(places) == 2:
        raise DtypeError(operator, "arrays in host and device memory", "all in one place", "Move them first.")
    return cuda if places == {"cuda"} else cpu


def is_device_array(argument: Any) -> bool:
    """Whether it is an array in a GPU's memory, or in that of numba's simulator, which has numba's mark alone."""
    is_cuda = getattr(argument, "is_cuda", None)
    if is_cuda is not None:  # torch's word, which takes a thirtieth of its interface's time.
        return is_cuda
    try:
        return hasattr(argument, "__cuda_array_interface__") or hasattr(argument, "__cuda_ndarray__")
    except RuntimeError:  # An older torch's answer for a tensor on the GPU that requires grad.
        return True


def on_kernels(operator: Operator[...]) -> Callable[..., Any]:
    """The public function `kernelproof.kernels.<operator>`: the specification's signature, doors and docstring."""

    @functools.wraps(operator.door)
    def public(*args: Any, precision: Precision = "strict", **kwargs: Any) -> Any:
        # What is remembered came with numpy arrays alone.
        way = cpu.at(precision).remembered.find(key_of(operator.__name__, args, kwargs))
        if way is not None:
            return way((*args, *kwargs.values()))
        return backend_of(operator.__name__, [*args, *kwargs.values()]).at(precision)(operator, *args, **kwargs)

    signature = inspect.signature(operator)
    precision = inspect.Parameter("precision", inspect.Parameter.KEYWORD_ONLY, default="strict", annotation=Precision)
    public.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), precision], return_annotation=Any
    )
    public.__name__ = public.__qualname__ = operator.__name__
    public.__doc__ = operator.__doc__
    return public
