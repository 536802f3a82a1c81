"""The numbers of a chain: immutable records of arrays under PyTorch's keys."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from .errors import ParameterError, ShapeError
from .operator import check_arrays


class Parameters(Mapping[str, Any]):
    """Arrays under PyTorch's keys (`conv1.weight`), in the chain's order, all of one scalar type.

    Made by a chain, which says what `shapes` it needs. The record does not change; the arrays are not copied.
    Raises ParameterError (a key missing or unknown), ShapeError, DtypeError.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], arrays: Mapping[str, Any]) -> None:
        for key in shapes:
            if key not in arrays:
                raise ParameterError("Parameters", f"{key} is missing", f"all of {', '.join(shapes)}", f"Add {key}.")
        for key in arrays:
            if key not in shapes:
                raise ParameterError("Parameters", f"{key!r} is unknown", f"only {', '.join(shapes)}", f"Drop {key!r}.")
        check_arrays("Parameters", **arrays)
        for key, shape in shapes.items():
            if tuple(arrays[key].shape) != shape:
                raise ShapeError(
                    "Parameters",
                    f"{key} is {tuple(arrays[key].shape)}",
                    f"{shape}",
                    "Pass an array of that shape, or wire the chain with other numbers.",
                )
        self._arrays = MappingProxyType({key: arrays[key] for key in shapes})
        self._needed: dict[str, tuple[int, ...]] | None = dict(shapes)

    def are_of(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether they were found to be what a chain with these shapes needs."""
        return self._needed == shapes

    @cached_property
    def dtype(self) -> Any:
        """The scalar type of all arrays; None if there are none."""
        return next((array.dtype for array in self.values()), None)

    @classmethod
    def unchecked(cls, arrays: Mapping[str, Any]) -> "Parameters":
        """The arrays of a chain that made them, under its keys and in its order."""
        record = object.__new__(cls)
        record._arrays, record._needed = MappingProxyType(dict(arrays)), None
        return record

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every array."""
        return {key: tuple(array.shape) for key, array in self.items()}

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    def astype(self, dtype: Any) -> "Parameters":
        """The same numbers as another scalar type, `object` for exact and interval arithmetic."""
        return Parameters(self.shapes, {key: array.astype(dtype) for key, array in self.items()})

    def of_layer(self, name: str) -> dict[str, Any]:
        """The arrays of one layer by their own keys, `weight` and `bias`."""
        return dict(self._layers.get(name, {}))

    @cached_property
    def _layers(self) -> dict[str, dict[str, Any]]:
        layers: dict[str, dict[str, Any]] = {}
        for key, array in self.items():
            name, _, own = key.rpartition(".")
            layers.setdefault(name, {})[own] = array
        return layers

    def __getitem__(self, key: str) -> Any:
        return self._arrays[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return f"Parameters({', '.join(f'{key} {shape}' for key, shape in self.shapes.items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Parameters, (self.shapes, dict(self))


@dataclass(frozen=True)
class Gradients:
    """What `SpecChain.backward` returns: the gradient of every parameter, under its key, and of the input, if asked."""

    parameters: Parameters
    x: Any
