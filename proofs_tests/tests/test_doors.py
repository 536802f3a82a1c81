"""The doors of the operators: each wrong call is refused in so many words; what is left out is as in PyTorch."""

import inspect
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelproof.spec import OPERATORS, ShapeError, Window, find
from kernelproof.spec.errors import KernelproofError
from kernelproof.spec.window import MOST, whole


def of(*shape: int) -> np.ndarray:
    """Whole numbers in no order, both signs."""
    return np.random.default_rng(len(shape)).permutation(int(np.prod(shape))).reshape(shape).astype(np.float32) - 3


def classes(*each: int) -> np.ndarray:
    return np.array(each, np.int64)


X, WEIGHT, Y = of(2, 4, 5, 6), of(6, 2, 3, 2), of(2, 6, 3, 5)
CONV, POOL = {"groups": 2}, {"kernel_size": (3, 2), "stride": 1}
POOLED = of(2, 4, 3, 5)

REFUSED: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("conv2d", (X.tolist(), WEIGHT), CONV, "x is a list; needs an array. Pass numpy.asarray(x)."),
    ("conv2d", (1, WEIGHT), CONV, "x is an int; needs an array. Pass numpy.asarray(x)."),
    ("conv2d", (np.uint8(1), WEIGHT), CONV, "x is a uint8; needs an array. Pass numpy.asarray(x)."),
    ("conv2d", (np.float32(1), WEIGHT), CONV, "x is a float32; needs an array. Pass numpy.asarray(x)."),
    ("conv2d", (X.astype(complex), WEIGHT), CONV, "x is complex128; needs real numbers. Convert with .astype first."),
    ("conv2d", (X, WEIGHT, of(6).astype(np.float64)), CONV,
     "x is float32, weight is float32, bias is float64; needs one scalar type for all. Convert with .astype first: "
     "nothing is promoted."),
    ("conv2d", (X[0, 0], WEIGHT), CONV,
     "x has 2 axes (5, 6); needs (n, c, h, w) or (c, h, w). Reshape it or add the missing axis."),
    ("conv2d", (X, WEIGHT[0]), CONV,
     "weight has 3 axes (2, 3, 2); needs (k, c/groups, r, s). Reshape it or add the missing axis."),
    ("conv2d", (X, WEIGHT, of(1, 6)), CONV,
     "bias has 2 axes (1, 6); needs (k). Reshape it or add the missing axis."),
    ("conv2d", (X, WEIGHT, of(5)), CONV, "length of bias is 5; needs filters = 6. One bias per filter."),
    ("conv2d", (X, WEIGHT), {"groups": 0}, f"groups=0; needs a whole number from 1 to {MOST}. Pass groups=1 or more."),
    ("conv2d", (X, WEIGHT), {"groups": 3},
     "groups=3 with 4 input channels; needs input channels divisible by groups. Change either."),
    ("conv2d", (X, WEIGHT), {"groups": 4},
     "groups=4 with 6 filters; needs filters divisible by groups. Change either."),
    ("conv2d", (X, WEIGHT), {"groups": 1},
     "axis 1 of weight (6, 2, 3, 2) is 2; needs input channels / groups = 4 / 1 = 4. Give x and weight matching "
     "channels."),
    ("conv2d", (X[:, :0], WEIGHT), CONV,
     "x (2, 0, 5, 6) with weight (6, 2, 3, 2); needs input channels. Pass some."),
    ("conv2d", (X, WEIGHT[:0]), CONV, "x (2, 4, 5, 6) with weight (0, 2, 3, 2); needs filters. Pass some."),
    ("conv2d", (X[:, :, :1], WEIGHT), CONV | {"padding": ((1, 0), (0, 0))},
     "a 3-row filter does not fit height 1 with padding 1 + 0; needs height + padding >= 3. Pad by 1 more or use a "
     "smaller filter."),
    ("conv2d", (X, WEIGHT), CONV | {"dilation": (1, 8), "padding": (0, 1)},
     "a 2-column filter (dilation 8 spans 9) does not fit width 6 with padding 1 + 1; needs width + padding >= 9. Pad "
     "by 1 more or use a smaller filter."),
    ("conv2d", (X, WEIGHT), CONV | {"stride": (1, 0)},
     f"width stride=0; needs a whole number from 1 to {MOST}. Pass width stride=1 or more."),
    ("conv2d", (X, WEIGHT), CONV | {"stride": 1.5},
     f"stride=1.5; needs a whole number from 1 to {MOST}. Pass stride=1 or more."),
    ("conv2d", (X, WEIGHT), CONV | {"dilation": True},
     f"dilation=True; needs a whole number from 1 to {MOST}. Pass dilation=1 or more."),
    ("conv2d", (X, WEIGHT), CONV | {"dilation": 0},
     f"dilation=0; needs a whole number from 1 to {MOST}. Pass dilation=1 or more."),
    ("conv2d", (X, WEIGHT), CONV | {"padding": -1},
     f"padding=-1; needs a whole number from 0 to {MOST}. Pass padding=0 or more."),
    ("conv2d", (X, WEIGHT), CONV | {"padding": ((0, -1), (0, 0))},
     f"width padding=-1; needs a whole number from 0 to {MOST}. Pass width padding=0 or more."),
    ("conv2d", (X, WEIGHT), CONV | {"stride": (1, 2, 3)},
     "stride=(1, 2, 3); needs one number or one per axis (h, w). Pass stride=(h, w)."),
    ("conv2d", (X, WEIGHT), CONV | {"stride": "11"},
     f"stride='11'; needs a whole number from 1 to {MOST}. Pass stride=1 or more."),
    ("conv2d.dx", (Y[:, :, 1:], WEIGHT, X.shape), CONV,
     "axis p of dy (2, 6, 2, 5) is 2; needs the forward's output size = 3. Pass dy of shape (2, 6, 3, 5)."),
    ("conv2d.dx", (Y[1:], WEIGHT, X.shape), CONV,
     "axis n of dy (1, 6, 3, 5) is 1; needs the forward's output size = 2. Pass dy of shape (2, 6, 3, 5)."),
    ("conv2d.dx", (Y, WEIGHT, (2, 4, 5, 6.0)), CONV,
     f"a size in x_shape=6.0; needs a whole number from 0 to {MOST}. Pass a size in x_shape=0 or more."),
    ("conv2d.dx", (Y, WEIGHT, 4), CONV, "x_shape is 4; needs a shape, as a tuple of sizes. Pass the array's .shape."),
    ("conv2d.dx", (Y[0], WEIGHT, X.shape), CONV,
     "dy has 3 axes (6, 3, 5); needs (n, k, p, q). Reshape it or add the missing axis."),
    ("conv2d.dx", (Y, WEIGHT, X.shape[1:]), CONV,
     "dy has 4 axes (2, 6, 3, 5); needs (k, p, q). Reshape it or add the missing axis."),
    ("conv2d.dweight", (Y[:, 1:], X, WEIGHT.shape), CONV,
     "axis k of dy (2, 5, 3, 5) is 5; needs the forward's output size = 6. Pass dy of shape (2, 6, 3, 5)."),
    ("conv2d.dweight", (Y[0], X, WEIGHT.shape), CONV,
     "dy has 3 axes (6, 3, 5); needs (n, k, p, q). Reshape it or add the missing axis."),
    ("conv2d.dweight", (Y, X, (6, 2, 3, -2)), CONV,
     f"a size in weight_shape=-2; needs a whole number from 0 to {MOST}. Pass a size in weight_shape=0 or more."),
    ("conv2d.dbias", (Y[0, 0],), {},
     "dy has 2 axes (3, 5); needs (n, k, p, q) or (k, p, q). Reshape it or add the missing axis."),
    ("max_pool2d", (X,), POOL | {"kernel_size": (6, 1)},
     "a 6-row window does not fit height 5 with padding 0 + 0; needs height + padding >= 6. Pad by 1 more or use a "
     "smaller window."),
    ("max_pool2d", (X,), POOL | {"padding": ((0, 3), (0, 0))},
     "window 5 along the height of 5 lies wholly in the padding (0, 3); needs every window to see the input. Use less "
     "padding or a larger window."),
    ("max_pool2d", (X,), POOL | {"padding": ((0, 0), (2, 0))},
     "window 0 along the width of 6 lies wholly in the padding (2, 0); needs every window to see the input. Use less "
     "padding or a larger window."),
    ("max_pool2d", (X,), POOL | {"ceil_mode": 1}, "ceil_mode=1; needs True or False. Pass a bool."),
    ("max_pool2d", (X,), POOL | {"return_indices": "yes"}, "return_indices='yes'; needs True or False. Pass a bool."),
    ("max_pool2d.dx", (POOLED[:, :, 1:], X), POOL,
     "axis 2 of dy (2, 4, 2, 5) is 2; needs the forward's output size = 3. Pass dy of shape (2, 4, 3, 5)."),
    ("max_pool2d.dx", (POOLED[..., 1:], X), POOL,
     "axis 3 of dy (2, 4, 3, 4) is 4; needs the forward's output size = 5. Pass dy of shape (2, 4, 3, 5)."),
    ("max_pool2d.dx", (POOLED[0], X), POOL,
     "dy has 3 axes (4, 3, 5); needs (n, c, p, q). Reshape it or add the missing axis."),
    ("linear", (of(3, 4), of(5, 3)), {},
     "last axis of x (3, 4) is 4; needs axis 1 of weight (5, 3) = 3. Give weight 4 columns, or the array 3 entries "
     "along that axis."),
    ("linear", (of(3, 4), of(5, 4), of(4)), {},
     "length of bias is 4; needs axis 0 of weight (5, 4) = 5. Give weight 4 rows, or the array 5 entries along that "
     "axis."),
    ("linear", (of(1, 3, 4), of(5, 4)), {},
     "x has 3 axes (1, 3, 4); needs (n, c) or (c). Reshape it or add the missing axis."),
    ("linear.dx", (of(3, 4), of(5, 4)), {},
     "last axis of dy (3, 4) is 4; needs axis 0 of weight (5, 4) = 5. Give weight 4 rows, or the array 5 entries along "
     "that axis."),
    ("linear.dweight", (of(3, 5), of(2, 4)), {},
     "batch of dy is 3; needs batch of x = 2. Pass one dy row per x row."),
    ("linear.dweight", (of(5), of(2, 4)), {},
     "dy has 1 axes (5,); needs (n, k). Reshape it or add the missing axis."),
    ("linear.dweight", (of(3, 5), of(4)), {},
     "dy has 2 axes (3, 5); needs (k). Reshape it or add the missing axis."),
    ("linear.dbias", (of(1, 3, 4),), {},
     "dy has 3 axes (1, 3, 4); needs (n, k) or (k). Reshape it or add the missing axis."),
    ("relu", ([1.0],), {}, "x is a list; needs an array. Pass numpy.asarray(x)."),
    ("relu.dx", (of(3, 4), of(4, 3)), {}, "dy is (3, 4) and x (4, 3); needs equal shapes. Pass the forward's x."),
    ("relu.dx", (of(4, 3), of(3, 4)), {}, "dy is (4, 3) and x (3, 4); needs equal shapes. Pass the forward's x."),
    ("flatten", (of(3, 4),), {}, "x has 2 axes (3, 4); needs (n, c, h, w). Reshape it or add the missing axis."),
    ("flatten.dx", (of(2, 23), (2, 2, 3, 4)), {},
     "axis 1 of dy (2, 23) is 23; needs x_shape (2, 2, 3, 4) = 24. Pass dy of shape (2, 24)."),
    ("flatten.dx", (of(1, 24), (2, 2, 3, 4)), {},
     "axis 0 of dy (1, 24) is 1; needs x_shape (2, 2, 3, 4) = 2. Pass dy of shape (2, 24)."),
    ("cross_entropy", (of(2, 3), classes(0)), {},
     "length of target is 1; needs batch of logits = 2. One class per row."),
    ("cross_entropy", (of(2, 3), classes(0, 3)), {},
     "target[1] = 3; needs classes 0 to 2. Correct that target."),
    ("cross_entropy", (of(2, 3), classes(-1, 0)), {},
     "target[0] = -1; needs classes 0 to 2. Correct that target."),
    ("cross_entropy", (of(2, 3), of(2)), {},
     "target is float32; needs signed integers. Use target.astype(numpy.int64)."),
    ("cross_entropy", (classes(1, 2)[None], classes(0)), {},
     "logits is int64; needs a floating type. Use logits.astype(numpy.float32)."),
    ("cross_entropy", (of(0, 3), classes()), {},
     "logits is (0, 3); needs at least one row and one class. The mean of nothing is 0/0."),
    ("cross_entropy.dlogits", (of(2, 3), classes(0, 3)), {},
     "target[1] = 3; needs classes 0 to 2. Correct that target."),
    ("sgd", (of(3), of(3), of(4)), {"learning_rate": 1},
     "parameter is (3,), gradient is (3,), velocity is (4,); needs equal shapes. Start velocity as zeros like the "
     "parameter."),
    ("sgd", (of(3), of(3), of(3)), {"learning_rate": -0.1},
     "learning_rate=-0.1; needs a finite number >= 0. Pass learning_rate=0 or more."),
    ("sgd", (of(3), of(3), of(3)), {"learning_rate": 1, "momentum": float("inf")},
     "momentum=inf; needs a finite number >= 0. Pass momentum=0 or more."),
    ("sgd", (of(3), of(3), of(3)), {"learning_rate": "0.1"},
     "learning_rate='0.1'; needs a finite number >= 0. Pass learning_rate=0 or more."),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "arguments", "options", "says"), REFUSED)
def test_a_wrong_call_is_refused_in_so_many_words(
    operator: str, arguments: tuple[Any, ...], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(KernelproofError) as refused:
        find(operator)(*arguments, **options)
    assert str(refused.value) == f"{operator.replace('.', '_')}: {says}"


def test_every_door_refuses_something() -> None:
    assert {operator for operator, *_ in REFUSED} == set(OPERATORS)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 4), st.integers(0, 3), st.integers(0, 3))
def test_padding_by_what_the_refusal_says_is_enough_and_one_less_is_not(
    kernel: int, dilation: int, size: int, before: int, after: int
) -> None:
    def window(more: int) -> Window:
        return Window((kernel, 1), padding=((before, after + more), (0, 0)), dilation=(dilation, 1))

    try:
        window(0).check_fits("conv2d", (size, 1))
    except ShapeError as refused:
        [more] = map(int, re.findall(r"Pad by (\d+) more", refused.remedy))
        window(more).check_fits("conv2d", (size, 1))
        with pytest.raises(ShapeError):
            window(more - 1).check_fits("conv2d", (size, 1))
    else:
        assert size + before + after >= dilation * (kernel - 1) + 1


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), np.array(3)])
def test_what_indexes_a_list_is_a_whole_number(value: Any) -> None:
    came = whole("conv2d", "stride", value, 3)
    assert (came, type(came)) == (3, int)


def test_the_greatest_number_is_taken_and_one_more_is_not() -> None:
    assert whole("conv2d", "stride", MOST, 1) == MOST == 2**31 - 1
    with pytest.raises(KernelproofError, match=rf"stride={MOST + 1}; .* Pass stride={MOST} or less"):
        whole("conv2d", "stride", MOST + 1, 1)


SPELLED_OUT = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}


@pytest.mark.parametrize(("operator", "arguments", "defaults"), [
    ("conv2d", (X, of(6, 4, 3, 2)), SPELLED_OUT | {"groups": 1, "bias": np.zeros(6, np.float32)}),
    ("conv2d.dx", (Y, of(6, 4, 3, 2), X.shape), SPELLED_OUT | {"groups": 1}),
    ("conv2d.dweight", (Y, X, (6, 4, 3, 2)), SPELLED_OUT | {"groups": 1}),
    ("max_pool2d", (X, 2), SPELLED_OUT | {"stride": (2, 2), "ceil_mode": False, "return_indices": False}),
    ("max_pool2d", (X, (2, 3)), SPELLED_OUT | {"stride": (2, 3)}),
    ("max_pool2d.dx", (of(2, 4, 2, 3), X, 2), SPELLED_OUT | {"stride": (2, 2), "ceil_mode": False}),
    ("sgd", (of(3), of(3)[::-1], of(3)), {"learning_rate": 2, "momentum": 0}),
])  # fmt: skip
def test_what_is_left_out_is_the_default(operator: str, arguments: tuple[Any, ...], defaults: dict[str, Any]) -> None:
    needed = {name: value for name, value in defaults.items() if name == "learning_rate"}
    short, long = find(operator)(*arguments, **needed), find(operator)(*arguments, **defaults)
    assert type(short) is type(long)
    assert np.array_equal(short, long)


@pytest.mark.parametrize(("operator", "arguments", "options"), [
    ("conv2d", (X, WEIGHT, of(6)), CONV),
    ("conv2d.dx", (Y, WEIGHT, X.shape), CONV),
    ("conv2d.dweight", (Y, X, WEIGHT.shape), CONV),
    ("conv2d.dbias", (Y,), {}),
    ("max_pool2d", (X,), POOL | {"return_indices": True}),
    ("max_pool2d.dx", (POOLED, X), POOL),
    ("linear", (of(2, 4), of(5, 4), of(5)), {}),
    ("linear.dx", (of(2, 5), of(5, 4)), {}),
    ("linear.dweight", (of(2, 5), of(2, 4)), {}),
    ("linear.dbias", (of(2, 5),), {}),
])  # fmt: skip
def test_one_image_is_a_batch_of_one(operator: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    one, batch = [], []
    for name, value in zip(inspect.signature(find(operator)).parameters, arguments, strict=False):
        as_it_is = name not in ("x", "dy", "x_shape")
        one.append(value if as_it_is else value[1:] if name == "x_shape" else value[0])
        batch.append(value if as_it_is else (1, *value[1:]) if name == "x_shape" else value[:1])
    came, right = find(operator)(*one, **options), find(operator)(*batch, **options)
    for each, among in zip(came, right, strict=True) if isinstance(came, tuple) else [(came, right)]:
        assert np.array_equal(each, among if operator.endswith(("dweight", "dbias")) else among[0])
