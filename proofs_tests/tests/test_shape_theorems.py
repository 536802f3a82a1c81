"""Level L0: z3 proves every theorem of the shape arithmetic, and refutes each when the arithmetic is at fault."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelproof.proofs import shape_algebra
from kernelproof.proofs.shape_algebra import THEOREMS, Theorem, prove
from kernelproof.proofs.symbolic import Natural, OutOfScope, least
from kernelproof.proofs.symbolic import given as presupposed
from kernelproof.spec import ReceptiveField, SizeMap, Sizes, Window

OUTPUT_SIZE = Window.output_size


def last_window_forgotten(window: Window, axis: int, size: int) -> int:
    return (size + sum(window.padding[axis]) - window.extent(axis)) // window.stride[axis]


def one_window_too_many(window: Window, axis: int, size: int) -> int:
    return OUTPUT_SIZE(window, axis, size) + 1


def stride_rounded_up(window: Window, axis: int, size: int) -> int:
    return (size + sum(window.padding[axis]) - window.extent(axis) - 1) // window.stride[axis] + 1


def ceil_without_the_rule(window: Window, axis: int, size: int) -> int:
    room = size + sum(window.padding[axis]) - window.extent(axis)
    return -(-room // window.stride[axis]) + 1


def ceil_start_at_the_edge(window: Window, axis: int, size: int) -> int:
    room, stride = size + sum(window.padding[axis]) - window.extent(axis), window.stride[axis]
    count = room // stride + 1
    return count + 1 if room % stride and count * stride <= size + window.padding[axis][0] else count


def width_and_height_swapped(index: tuple[Any, ...], shape: tuple[Any, ...]) -> Any:
    return index[-2] * shape[-2] + index[-1]


FAULTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "output_size_counts_the_windows_that_fit": (Window, "output_size", last_window_forgotten),
    "ceil_mode_counts_the_windows_that_start_in_time": (Window, "output_size", ceil_without_the_rule),
    "ceil_mode_is_pytorchs_rule": (Window, "output_size", ceil_start_at_the_edge),
    "every_read_lies_in_the_padded_array": (Window, "output_size", one_window_too_many),
    "every_read_of_ceil_mode_lies_in_the_padded_array": (Window, "reach", lambda window, axis, size: 1),
    "flat_indices_lie_in_range": (
        shape_algebra, "row_major", lambda index, shape: sum(i * s for i, s in zip(index, shape, strict=True)),
    ),
    "flat_indices_tell_entries_apart": (shape_algebra, "row_major", width_and_height_swapped),
    "a_window_is_a_size_map": (
        SizeMap,
        "of",
        lambda window, axis: SizeMap(sum(window.padding[axis]) - window.extent(axis), window.stride[axis]),
    ),
    "a_window_with_ceil_mode_is_a_size_map": (
        SizeMap,
        "of",
        lambda window, axis: SizeMap(
            sum(window.padding[axis]) - window.extent(axis) + 2 * window.stride[axis] - 1, window.stride[axis]
        ),
    ),
    "size_maps_compose": (SizeMap, "__rshift__", lambda a, b: SizeMap(a.b + b.b, a.s * b.s)),
    "solve_finds_exactly_the_sizes": (
        SizeMap,
        "solve",
        lambda map_, out: Sizes.of(*((max(0, a * map_.s - map_.b), b * map_.s - map_.b) for a, b in out.ranges)),
    ),
    "transposed_sizes_round_trip": (Window, "output_size", stride_rounded_up),
    "receptive_fields_compose": (
        ReceptiveField,
        "__rshift__",
        lambda a, b: ReceptiveField(a.size + (b.size - 1) * b.jump, a.jump * b.jump, a.offset + b.offset * a.jump),
    ),
    "adaptive_bins_are_never_empty": (
        shape_algebra, "adaptive_bin", lambda i, bins, size: (i * size // bins, (i + 1) * size // bins),
    ),
    "adaptive_bins_leave_no_gap": (
        shape_algebra, "adaptive_bin", lambda i, bins, size: (-(-i * size // bins), (i + 1) * size // bins),
    ),
}  # fmt: skip
"""For each theorem a fault in the arithmetic that it speaks of: where, and what stands there instead."""


@pytest.mark.parametrize("theorem", THEOREMS.values(), ids=list(THEOREMS))
def test_theorem_is_proved_for_every_size(theorem: Theorem):
    proof = prove(theorem)
    assert proof.proved, proof


@pytest.mark.parametrize("name", THEOREMS)
def test_theorem_is_refuted_where_the_arithmetic_is_at_fault(name: str, monkeypatch: pytest.MonkeyPatch):
    place, attribute, fault = FAULTS[name]
    static = isinstance(inspect.getattr_static(place, attribute), staticmethod)
    monkeypatch.setattr(place, attribute, staticmethod(fault) if static else fault)
    proof = prove(THEOREMS[name])
    assert proof.counterexample is not None, proof
    # The numbers that z3 found are wrong when the arithmetic is run on them as it stands.
    assert not THEOREMS[name].holds(**proof.counterexample)


@pytest.mark.parametrize("theorem", THEOREMS.values(), ids=list(THEOREMS))
def test_theorem_holds_on_numbers(theorem: Theorem):
    """The same function, run as Python runs it: the symbols stand for whole numbers, floor division included."""
    bounds = {name: -9 if bound is None else bound for name, bound in least(theorem.holds).items()}
    reached = 0

    @settings(max_examples=200, database=None, derandomize=True)
    @given(st.fixed_dictionaries({name: st.integers(bound, 9) for name, bound in bounds.items()}))
    def every(numbers: dict[str, int]) -> None:
        nonlocal reached
        try:
            assert theorem.holds(**numbers)
            reached += 1
        except OutOfScope:
            pass

    every()
    assert reached > 5, "hardly any numbers meet the premises"


def test_premises_that_no_numbers_meet_prove_nothing():
    def impossible(size: Natural) -> Any:
        presupposed(size < 0)
        return size == 1

    assert not prove(Theorem("impossible", "", impossible)).proved


def test_every_branch_is_a_path():
    def largest(a: int, b: int) -> Any:
        return (max(a, b) >= a) & (max(a, b) >= b)

    assert prove(Theorem("largest", "", largest)).proved
    wrong = prove(Theorem("wrong", "", lambda a, b: max(a, b) == a)).counterexample
    assert wrong is not None
    assert wrong["b"] > wrong["a"]


def test_a_window_moves_by_one_and_pads_nothing_unless_told():
    assert Window((3, 2)) == Window((3, 2), (1, 1), ((0, 0), (0, 0)), (1, 1), False)
