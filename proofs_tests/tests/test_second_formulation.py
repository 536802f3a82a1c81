"""Level L11: the specification agrees with literal nested loops, written from the equations without its arithmetic."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import nested_loops
import numpy as np
import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st

from kernelproof.proofs.bounds import rounding_bound
from kernelproof.proofs.drawing import problems
from kernelproof.proofs.problems import Problem
from kernelproof.spec import OPERATORS, Window

RATIONAL = [name for name in OPERATORS if not name.startswith("cross_entropy")]
SELECTIONS = [name for name in OPERATORS if name.startswith(("max_pool2d", "relu"))]
LOOPS_AT_MOST = 20_000
"""Products that the loops may take for one problem: the sizes past every vector width are for kernels."""


def name_of(operator: str) -> str:
    return operator.replace(".", "_")


def loops(problem: Problem) -> Any:
    return getattr(nested_loops, name_of(problem.operator))


def small(operator: str, family: str, dtype: str = "float32") -> st.SearchStrategy[Problem]:
    """Problems that pure Python is done with in an instant."""

    def is_small(problem: Problem) -> bool:
        sizes = [np.prod(shape) for shape in (*problem.shapes.values(), problem.output)]
        kernel = problem.shapes.get("weight", problem.options.get("kernel_size", (1,)))
        return int(max(sizes)) * int(np.prod(kernel)) <= LOOPS_AT_MOST

    return problems(operator, family, (dtype,)).filter(is_small)


def results(came: Any) -> tuple[np.ndarray, ...]:
    return tuple(map(np.asarray, came if isinstance(came, tuple) else (came,)))


def agree(problem: Problem, arrays: Mapping[str, np.ndarray]) -> None:
    """Equal in every entry, or NaN in both."""
    came, right = (results(problem.call(each, arrays)) for each in (problem.spec, loops(problem)))
    assert [each.shape for each in came] == [each.shape for each in right]
    for got, expected in zip(came, right, strict=True):
        same = np.asarray(got == expected, bool) | np.asarray((got != got) & (expected != expected), bool)
        assert same.all(), np.argwhere(~same)[0]


@pytest.mark.parametrize("operator", RATIONAL)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(data=st.data())
def test_loops_agree_on_whole_numbers(operator: str, data: st.DataObject):
    problem = data.draw(small(operator, "whole"))
    agree(problem, {name: array.astype(np.int64) for name, array in problem.arrays().items()})


@pytest.mark.parametrize("operator", RATIONAL)
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(data=st.data())
def test_loops_agree_on_fractions(operator: str, data: st.DataObject):
    problem = data.draw(small(operator, "ties" if operator in SELECTIONS else "whole"))
    numerators = problem.arrays()
    arrays = {name: np.empty(array.shape, object) for name, array in numerators.items()}
    for salt, (name, array) in enumerate(numerators.items()):
        denominators = np.random.default_rng([problem.seed, salt]).integers(1, 8, array.shape)
        for place in np.ndindex(array.shape):
            arrays[name][place] = Fraction(int(array[place]), int(denominators[place]))
    agree(problem, arrays)


@pytest.mark.parametrize("operator", SELECTIONS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(data=st.data())
def test_loops_agree_on_nan_infinities_and_zeros(operator: str, data: st.DataObject):
    problem = data.draw(small(operator, "special", "float64"))
    with np.errstate(invalid="ignore"):
        agree(problem, problem.arrays())


@pytest.mark.parametrize("operator", SELECTIONS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(data=st.data())
def test_loops_agree_where_values_tie(operator: str, data: st.DataObject):
    problem = data.draw(small(operator, "ties"))
    agree(problem, problem.arrays())


@pytest.mark.parametrize("operator", ["cross_entropy", "cross_entropy.dlogits"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(data=st.data())
def test_loops_agree_within_the_bounds_of_both(operator: str, data: st.DataObject):
    """Logarithms are not rational: both round, each within the derived bound of float64."""
    problem = data.draw(small(operator, "real", "float64"))
    arrays = problem.arrays()
    (allowed,) = rounding_bound(problem, arrays, "float64")
    came, right = (np.asarray(problem.call(each, arrays)) for each in (problem.spec, loops(problem)))
    assert (np.abs(came - right) <= 2 * allowed).all()


def width_like_height(window: Window, axis: int, p: Any, r: Any) -> Any:
    return p * window.stride[0] + r * window.dilation[axis] - window.padding[axis][0]


def one_window_less(window: Window, axis: int, size: int) -> int:
    return max(1, (size + sum(window.padding[axis]) - window.extent(axis)) // window.stride[axis])


@pytest.mark.parametrize(("method", "fault"), [("position", width_like_height), ("output_size", one_window_less)])
@pytest.mark.parametrize("operator", ["conv2d", "max_pool2d"])
def test_a_fault_in_the_specification_shows(operator: str, method: str, fault: Any, monkeypatch: pytest.MonkeyPatch):
    # The problems are drawn with the arithmetic as it is: only the specification that answers them is at fault.
    def falls(problem: Problem) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(Window, method, fault)
            try:
                agree(problem, problem.arrays())
            except (AssertionError, IndexError):
                return True
        return False

    find(small(operator, "whole"), falls, settings=settings(database=None))


def test_every_operator_has_a_second_formulation():
    assert all(callable(getattr(nested_loops, name_of(name))) for name in OPERATORS)
