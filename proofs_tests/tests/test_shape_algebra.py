"""The closed forms are the window's arithmetic: every formula against counting, one size at a time."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelproof.spec import (
    Conv2d,
    Dimension,
    Domain,
    KernelproofError,
    MaxPool2d,
    ParameterError,
    SizeMap,
    Sizes,
    Window,
    conv2d,
    max_pool2d,
)
from kernelproof.spec.shape_algebra import divisors, product, size_at, through

SIZES = range(60)
small = st.integers(1, 4)
maps = st.builds(SizeMap, st.integers(-12, 12), st.integers(1, 6))
ranges = st.lists(st.tuples(st.integers(0, 30), st.just(math.inf) | st.integers(0, 40)), max_size=4)


@st.composite
def windows(draw: st.DrawFn, ceil_mode: bool) -> Window:
    """Any window along the height; with ceil_mode the padding after is less than the extent, as layers have it."""
    kernel, stride, dilation = draw(small), draw(small), draw(small)
    most = dilation * (kernel - 1) if ceil_mode else 9
    pads = draw(st.integers(0, most)), draw(st.integers(0, most))
    return Window((kernel, 1), (stride, 1), (pads, (0, 0)), (dilation, 1), ceil_mode)


@given(windows(ceil_mode=False) | windows(ceil_mode=True))
def test_the_closed_form_is_the_window_s_output_size_wherever_the_window_fits(window):
    for size in filter(lambda size: window.fits(0, size), SIZES):
        assert SizeMap.of(window, 0)(size) == window.output_size(0, size)


@given(maps, maps)
def test_composition_is_one_map_after_the_other(first, then):
    assert all((first >> then)(size) == then(first(size)) for size in SIZES)


@given(maps, maps)
def test_maps_that_agree_on_all_sizes_have_equal_numbers(one, other):
    # Slopes 1/s differ by 1/30 or more and offsets by at most 24: 900 sizes are enough to drift a whole output apart.
    assert (one == other) == all(one(size) == other(size) for size in range(900))


@given(maps, ranges)
def test_solve_gives_exactly_the_sizes_that_map_into_the_set(map_, wanted):
    out = Sizes.of(*wanted)
    assert [size in map_.solve(out) for size in SIZES] == [map_(size) in out for size in SIZES]


@given(ranges, ranges)
def test_sizes_are_sets_kept_as_disjoint_sorted_ranges(some, others):
    def members(pairs):
        return {size for a, b in pairs for size in SIZES if a <= size <= b}

    one, other = Sizes.of(*some), Sizes.of(*others)
    assert {size for size in SIZES if size in one} == members(some)
    assert {size for size in SIZES if size in (one & other)} == members(some) & members(others)
    assert bool(one) == bool(members(some))
    assert not one or one.smallest == min(members(some))
    for (_, last), (first, _) in itertools.pairwise(one.ranges):
        assert last + 1 < first


def test_sizes_read_as_one_would_say_them():
    sizes = Sizes.of((28, 31), (5, 5), (40, math.inf))
    assert str(sizes) == "5 or 28..31 or >= 40"
    assert sizes.of_name("h") == "h = 5 or h in 28..31 or h >= 40"
    assert str(Sizes.of()) == "none"


@given(st.integers(1, 5), st.lists(st.tuples(st.sampled_from("hw"), maps), min_size=1, max_size=3), st.data())
def test_a_printed_dimension_is_python_for_its_value(times, factors, data):
    size = Dimension(tuple(factors), times)
    at = {name: data.draw(st.integers(0, 40), name) for name in "hw"}
    assert size.at(at) == eval(str(size), {}, at)


@given(maps, maps)
def test_dimensions_go_through_maps_as_numbers_do(first, then):
    out = through(then, through(first, Dimension.named("h")))
    assert all(size_at(out, {"h": size}) == through(then, through(first, size)) for size in SIZES)


def test_dimensions_print_readably():
    h, w = Dimension.named("h"), Dimension.named("w")
    halved = through(SizeMap(1, 2), h)
    assert [str(each) for each in (h, halved, through(SizeMap(-2), h), through(SizeMap(0, 4), w))] == [
        "h",
        "(h + 1)//2",
        "h - 2",
        "w//4",
    ]
    assert str(product(64, halved, w)) == "64*((h + 1)//2)*w"
    assert product(2, 3) == 6
    assert product(0, h) == 0


@given(
    st.integers(0, 4),
    st.lists(st.tuples(st.sampled_from("hw"), st.builds(SizeMap, st.integers(-3, 3), st.integers(1, 3))), max_size=2),
    st.integers(0, 24),
)
def test_a_domain_holds_exactly_the_sizes_that_make_the_product(times, factors, wanted):
    # A product of 0 is asked of no Linear; there alone one factor being 0 leaves the other free.
    wanted = max(wanted, 1) if len(factors) > 1 else wanted
    factors = [(name, SizeMap(max(map_.b, 0), map_.s)) for name, map_ in factors]  # sizes are never negative
    size = product(times, *(Dimension((factor,)) for factor in factors))
    domain = Domain.equal(size, wanted)
    for h, w in itertools.product(range(30), repeat=2):
        assert ({"h": h, "w": w} in domain) == (size_at(size, {"h": h, "w": w}) == wanted)


@given(st.integers(1, 5000))
def test_divisors_are_all_that_divide(number):
    assert list(divisors(number)) == [d for d in range(1, number + 1) if number % d == 0]


def accepts(operator, size, *args, **kwargs) -> bool:
    try:
        operator(np.zeros((1, 1, size, 1)), *args, **kwargs)
    except KernelproofError:
        return False
    return True


@given(windows(ceil_mode=False))
def test_a_conv_is_legal_on_exactly_the_sizes_that_conv2d_accepts(window):
    layer = Conv2d(1, 1, window.kernel, window.stride, window.padding, window.dilation)
    geometry = {"stride": window.stride, "padding": window.padding, "dilation": window.dilation}
    for size in range(1, 16):
        assert (size in layer.legal(0)) == accepts(conv2d, size, np.zeros((1, 1, *window.kernel)), **geometry)


@given(windows(ceil_mode=False) | windows(ceil_mode=True))
def test_a_pool_is_legal_on_exactly_the_sizes_that_max_pool2d_accepts(window):
    geometry = {"stride": window.stride, "padding": window.padding, "dilation": window.dilation}
    geometry["ceil_mode"] = window.ceil_mode
    accepted = [accepts(max_pool2d, size, window.kernel, **geometry) for size in range(1, 24)]
    try:
        layer = MaxPool2d(window.kernel, **geometry)
    except ParameterError:
        # Refused as a layer because some sizes that fit are refused by the operator, however large they grow.
        assert max(window.padding[0]) >= window.extent(0)
        assert not all(accepted[-window.stride[0] :])
    else:
        assert [size in layer.legal(0) for size in range(1, 24)] == accepted


def test_ceil_mode_drops_a_window_that_would_start_in_the_padding_after_the_input():
    # torch.nn.MaxPool2d(2, 2, padding=1, ceil_mode=True) on 3 rows gives 2, not ceil((3 + 2 - 2) / 2) + 1 = 3.
    window = MaxPool2d(2, 2, 1, ceil_mode=True).window
    assert [SizeMap.of(window, 0)(size) for size in range(1, 7)] == [1, 2, 2, 3, 3, 4]


@pytest.mark.parametrize("number", [1, 2, 3136])
def test_a_number_is_admitted_as_itself(number):
    assert Domain.equal(number, number)
    assert not Domain.equal(number, number + 1)
