"""Kernels that want to pass without being right: the list of them, and those that answer wrong."""

from collections.abc import Callable
from typing import Any

import numpy as np

from kernelproof import spec

DIED = "ended its process (SIGSEGV) | ended its process (SIGBUS)"
"""Of memory that is not there: macOS calls some of it a bus error."""

CHEATS: dict[str, tuple[str, str, Callable[[], Callable[..., Any]]]] = {}
OP = "conv2d"


def cheat(says: str, operator: str = "relu") -> Callable[[Callable[[], Callable[..., Any]]], Callable[..., Any]]:
    """What the function below makes, with a state of its own, must be refuted with a message that holds `says`."""

    def plant(make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        CHEATS[make.__name__] = says, operator, make
        return make

    return plant


def answer(x: Any) -> Any:
    return spec.relu(x)


@cheat("the specification")
def returns_zeros() -> Any:
    return lambda x: np.zeros_like(x)


@cheat("the kernel gives nan")
def answers_nan_everywhere() -> Any:
    return lambda x: np.full(x.shape, np.nan, x.dtype)


@cheat("the kernel gives nan")
def answers_nan_where_it_is_not_sure() -> Any:
    return lambda x: np.where(np.abs(x) > 100, np.float32(np.nan), answer(x))


@cheat("the specification")
def is_wrong_every_fiftieth_time() -> Any:
    calls = iter(range(2**62))
    return lambda x: answer(x) + x.dtype.type(next(calls) % 50 == 49)


@cheat("the specification")
def is_right_the_first_hundred_times() -> Any:
    calls = iter(range(2**62))
    return lambda x: answer(x) + x.dtype.type(next(calls) >= 100)


@cheat("the specification")
def is_right_for_small_numbers() -> Any:
    return lambda x: np.where(np.abs(x) > 50, x.dtype.type(0), answer(x))


@cheat("float64, needs float32")
def answers_in_a_wider_type() -> Any:
    return lambda x: answer(x).astype(np.float64)


@cheat("has shape")
def answers_in_a_shape_that_broadcasts() -> Any:
    return lambda x: answer(x)[:1] if x.ndim else answer(x)


@cheat("has shape")
def answers_with_an_axis_more() -> Any:
    return lambda x: answer(x)[None]


@cheat("")
def answers_with_an_array_that_equals_everything() -> Any:
    class Agreeable(np.ndarray):
        def __eq__(self, other: object) -> Any:
            return np.ones(self.shape, bool)

        def __array_ufunc__(self, *args: Any, **kwargs: Any) -> Any:
            return np.zeros(self.shape, bool)

        def astype(self, *args: Any, **kwargs: Any) -> Any:
            return self

    return lambda x: np.zeros_like(x).view(Agreeable)


@cheat("needs an array")
def answers_with_a_thing_that_calls_itself_an_array() -> Any:
    class Liar:
        shape, dtype = (), np.dtype(np.float32)

        def __array__(self, *args: Any, **kwargs: Any) -> Any:
            return np.zeros(())

        def __eq__(self, other: object) -> bool:
            return True

    return lambda x: Liar()


@cheat("needs an array")
def answers_with_a_number() -> Any:
    return lambda x: float(answer(x)) if x.ndim == 0 else answer(x)


@cheat("needs float32")
def answers_with_objects() -> Any:
    class Equal(float):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = float.__hash__

    return lambda x: np.array([Equal(0)] * x.size, object).reshape(x.shape)


@cheat("2 results, needs 1")
def answers_twice() -> Any:
    return lambda x: (answer(x), answer(x))
