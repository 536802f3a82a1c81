"""A kernel inherits its contract: `@implements(spec.conv2d, "cpu")` binds a typed entry to what it must compute.

The entry has the parameter names of the specification's body and restates nothing: shapes and types are the
specification's annotations, enforced by jaxtyping and beartype around the entry, never inside jitted code. Its
docstring adds what is the kernel's own: parallel axes, accumulation type and order, layouts, limits, fallback.
An entry that can do better where more rounding is allowed asks for it: one more parameter, `*, precision`.
"""

import functools
import inspect
import operator as python_operator
from collections.abc import Callable
from types import UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin

import numpy as np
from beartype import beartype
from jaxtyping import AbstractArray, jaxtyped

from kernelproof.spec.errors import DtypeError
from kernelproof.spec.operator import Operator

DTYPES = ("float32", "float64")
"""Scalar types that kernels compute in."""

Precision: TypeAlias = Literal["strict", "fast", "tf32", "fp16", "bf16"]
"""What rounding is allowed. "strict", the default, holds the componentwise bound and so serves every other choice."""

KERNELS: dict[tuple[str, str], Callable[..., Any]] = {}
"""The one dispatch table: `(operator name, backend)` to the checked entry."""


def implements(
    operator: Operator[...], backend: str, array_type: Any = np.ndarray
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Bind the entry below to `operator` on `backend`, whose arrays are of `array_type`.

    Raises TypeError at import if the entry's parameters are not the specification's.
    """
    contract = inspect.signature(operator.__wrapped__)

    def bind(entry: Callable[..., Any]) -> Callable[..., Any]:
        name = operator.__name__
        came, needed = list(inspect.signature(entry).parameters), list(contract.parameters)
        chooses = came[-1:] == ["precision"]
        if came[: len(came) - chooses] != needed:
            raise TypeError(f"{name} on {backend}: the kernel takes {came}; needs {needed}, as the specification.")
        hints = {key: each.annotation for key, each in contract.parameters.items()} | {
            "return": contract.return_annotation
        }
        entry.__annotations__ = {key: _over(array_type, hint) for key, hint in hints.items()}
        precision = inspect.Parameter("precision", inspect.Parameter.KEYWORD_ONLY, annotation=Precision)
        entry.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [each.replace(annotation=entry.__annotations__[key]) for key, each in contract.parameters.items()]
            + [precision] * chooses,
            return_annotation=entry.__annotations__["return"],
        )

        @functools.cache
        def checked() -> Callable[..., Any]:
            """Made when first called: a process calls few of the kernels."""
            return jaxtyped(typechecker=beartype)(entry)

        @functools.wraps(entry)
        def kernel(*arguments: Any, precision: Precision = "strict") -> Any:
            _check_dtypes(name, backend, needed, arguments)
            return checked()(*arguments, precision=precision) if chooses else checked()(*arguments)

        def unchecked(precision: Precision) -> Callable[..., Any]:
            return functools.partial(entry, precision=precision) if chooses else entry

        kernel.unchecked, kernel.chooses = unchecked, chooses  # type: ignore[attr-defined]
        kernel.__doc__ = f"{inspect.getdoc(operator)}\n\nOn {backend}: {inspect.getdoc(entry)}"
        KERNELS[name, backend] = kernel
        return kernel

    return bind


def _check_dtypes(operator: str, backend: str, names: list[str], arguments: tuple[Any, ...]) -> None:
    for name, value in zip(names, arguments, strict=True):
        # Class numbers are integers by their own contract; every other array holds the scalars computed with.
        if name != "target" and hasattr(value, "dtype") and np.dtype(value.dtype).name not in DTYPES:
            raise DtypeError(
                f"{operator} on {backend}",
                f"{name} is {value.dtype}",
                " or ".join(DTYPES),
                f"Convert with .astype, or call kernelproof.spec.{operator}, which takes any scalar.",
            )


def _over(array_type: Any, hint: Any) -> Any:
    """The same annotation for arrays of `array_type`."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return hint.dtype[array_type, hint.dim_str]
    parts = tuple(_over(array_type, part) for part in get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return functools.reduce(python_operator.or_, parts)
    if get_origin(hint) is tuple:
        return tuple[parts]
    return hint
