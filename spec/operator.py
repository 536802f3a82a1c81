"""How a specification is called: a door that normalises and refuses, then a body that is the mathematics.

`@operator(door)` above a body makes the public function. The caller sees the door's signature (PyTorch's arguments),
the body sees a `Window` and batched arrays, and jaxtyping with beartype check the body's shapes, result included.
Kernels are called through the same doors, so an argument is refused with the same words wherever it runs.
"""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeAlias

import numpy as np
from beartype import beartype
from jaxtyping import jaxtyped

from .errors import DtypeError, ShapeError, type_of


def _settle_jaxtyping() -> None:
    """Its first use imports jax, where that is installed, to hide jaxtyping's own lines in jax's tracebacks.

    That takes twice as long as all else here, for everybody who does not use jax: those who did import it have it so.
    """
    asked_for = "jax._src.traceback_util"
    if "jax" in sys.modules:
        return
    sys.modules[asked_for] = None  # type: ignore[assignment]  # Not to be found, says Python's import.
    try:
        jaxtyped("context")
    finally:
        del sys.modules[asked_for]


_settle_jaxtyping()

P = ParamSpec("P")
Array: TypeAlias = np.ndarray


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a door hands to the body; `single` if the result's batch axis was the door's own addition."""

    values: tuple[Any, ...]
    single: bool = False


class Operator(Generic[P]):
    """A public specification: `door` (arguments in, refusals out), `body` (the equation, shape-checked)."""

    # What functools gives every function that is wrapped.
    __name__: str
    __wrapped__: Callable[..., Any]

    def __init__(self, door: Callable[P, Arguments], body: Callable[..., Any]) -> None:
        functools.update_wrapper(self, body)
        self.door, self._written = door, body
        self.__signature__ = inspect.signature(door).replace(
            return_annotation=inspect.signature(body).return_annotation
        )

    @functools.cached_property
    def body(self) -> Callable[..., Any]:
        """The equation, which checks shapes: made so when first asked for, not whenever the specification is read."""
        return jaxtyped(typechecker=beartype)(self._written)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        return self.perform(self.body, *args, **kwargs)

    def unchecked(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """The same, where only the door looks at the arguments: for shapes that held the body's annotations before."""
        return self.perform(self._written, *args, **kwargs)

    def perform(self, body: Callable[..., Any], *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call `body`, the specification's or a kernel's, through this operator's door."""
        arguments = self.door(*args, **kwargs)
        result = body(*arguments.values)
        if not arguments.single:
            return result
        return tuple(each[0] for each in result) if isinstance(result, tuple) else result[0]

    def __reduce__(self) -> tuple[Callable[[str, str], Any], tuple[str, str]]:
        # As a function would: by name. The checked body cannot travel to another process.
        return _named, (self.__module__, self.__name__)

    def __repr__(self) -> str:
        return f"<operator {self.__name__}{self.__signature__}>"


def _named(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def operator(door: Callable[P, Arguments]) -> Callable[[Callable[..., Any]], Operator[P]]:
    """Make the body below into a public function that is called as `door` is."""

    def make(body: Callable[..., Any]) -> Operator[P]:
        # Python's own refusal of an unknown argument names the function: let it be the one that was called.
        door.__name__ = door.__qualname__ = body.__name__
        return Operator(door, body)

    return make


def check_arrays(operator: str, **arrays: Any) -> None:
    """Every argument is an array and all have one scalar type; raises DtypeError. A bias may be None: absent."""
    dtypes = {}
    for name, array in arrays.items():
        if name == "bias" and array is None:
            continue
        if not hasattr(array, "shape") or not hasattr(array, "dtype") or isinstance(array, np.generic):
            raise DtypeError(operator, f"{name} is {type_of(array)}", "an array", f"Pass numpy.asarray({name}).")
        try:
            kind = np.dtype(array.dtype).kind
        except TypeError:  # Another library's.
            raise DtypeError(
                operator, f"{name} is an array of {type(array).__module__}", "numpy arrays, or device arrays",
                f"Pass numpy.asarray({name}), or move all of them to the GPU.",
            ) from None  # fmt: skip
        if kind not in "biufO":
            raise DtypeError(operator, f"{name} is {array.dtype}", "real numbers", "Convert with .astype first.")
        dtypes[name] = array.dtype
    if len(set(dtypes.values())) > 1:
        came = ", ".join(f"{name} is {dtype}" for name, dtype in dtypes.items())
        raise DtypeError(operator, came, "one scalar type for all", "Convert with .astype first: nothing is promoted.")


def check_shape(operator: str, name: str, shape: Any, *wanted: tuple[str, ...]) -> None:
    """The number of axes is one of those wanted, each given by its letters; raises ShapeError."""
    if not isinstance(shape, Sequence):
        raise ShapeError(operator, f"{name} is {shape!r}", "a shape, as a tuple of sizes", "Pass the array's .shape.")
    if len(shape) not in [len(letters) for letters in wanted]:
        needed = " or ".join(f"({', '.join(letters)})" for letters in wanted)
        raise ShapeError(
            operator, f"{name} has {len(shape)} axes {tuple(shape)}", f"{needed}", "Reshape it or add the missing axis."
        )


def check_equal(operator: str, came: str, size: int, needed: str, wanted: int, remedy: str) -> None:
    """One size equals the other; raises ShapeError that tells both."""
    if size != wanted:
        raise ShapeError(operator, f"{came} is {size}", f"{needed} = {wanted}", remedy)


def batched(array: Any, axes: int) -> Any:
    """`array` with a batch axis of one in front if it has one axis fewer than `axes`."""
    return array[None] if len(array.shape) == axes - 1 else array
