"""Convolution, rectifier and pooling by twos as one block of a chain: forward, and backward from what that kept.

The convolution rectifies as it stores, pooling keeps which pixel won, and that and the pooled output are all that
backward reads: the gradient is gated and summed for the bias while it is small, and spread to the winners once.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kernelproof import spec
from kernelproof.kernels.dispatch import is_device_array
from kernelproof.spec.blocks import Backward, Block, Single, in_a_row, one_by_one
from kernelproof.spec.layers import Conv2d, MaxPool2d, Perform, ReLU
from kernelproof.spec.parameters import Parameters
from kernelproof.spec.wiring import Step

from .conv import conv2d_dbias
from .host.allowance import served
from .host.arrays import SIMULATED, DeviceArray, run
from .relu import in_one_piece

if not SIMULATED:
    from .cuda_cores import first_block, pool_by_twos
    from .cuda_cores.elementwise import gated_bias_gradient
    from .cuda_cores.greatest import with_greatest
    from .tensor_cores import launch_conv
    from .tensor_cores.arithmetic import ARITHMETIC


@dataclass(frozen=True)
class Fused:
    """A rectified convolution, pooled by twos or not."""

    steps: tuple[Step, ...]
    convolution: Conv2d
    pooled: bool
    feeds_convolution: bool

    def vjp(self, perform: Perform, parameters: Parameters, x: Any) -> tuple[Any, Backward]:
        """The output for a batch x, and what takes its gradient back; step by step where they cannot be fused."""
        name, conv = self.steps[0].name, self.convolution
        own, precision = parameters.of_layer(name), getattr(perform, "precision", "strict")
        is_scaled = ARITHMETIC[precision].scaled
        forward = functools.partial(
            _forward, window=conv.window, groups=conv.groups, precision=precision, pooled=self.pooled,
            is_to_be_scaled=is_scaled and self.feeds_convolution,
        )  # fmt: skip
        kept = None
        if len(x) and (isinstance(x, DeviceArray) or is_device_array(x)):
            kept = run("conv2d", forward, (x, own["weight"], own.get("bias")), {})
        if kept is None:
            return in_a_row(one_by_one(self.steps), perform, parameters, x)
        y, *winner = kept

        def backward(dy: Any, of_x: bool) -> tuple[dict[str, Any], Any]:
            if self.pooled and conv.bias and not of_x:
                shape = own["weight"].shape
                first = functools.partial(_first_gradients, shape=shape, window=conv.window, groups=conv.groups)
                both = run("conv2d_dweight", first, (dy, winner[0], x), {})
                if both is not None:
                    return dict(zip((f"{name}.weight", f"{name}.bias"), both, strict=True)), None
            if self.pooled:  # Winners are none where the rectifier lets no gradient through.
                shape = len(x), conv.out_channels, conv.window.p(x.shape), conv.window.q(x.shape)
                unpooled = functools.partial(
                    _unpooled, shape=shape, of_bias=conv.bias, is_to_be_scaled=of_x and is_scaled
                )
                dconv, *dbias = run("max_pool2d_dx", unpooled, (dy, winner[0]), {})
            else:
                dconv = perform(spec.relu_dx, dy, y)
                dbias = [perform(spec.conv2d_dbias, dconv)] if conv.bias else []
            gradients = {"weight": perform(spec.conv2d_dweight, dconv, x, own["weight"].shape, **conv.geometry)}
            if conv.bias:
                gradients["bias"] = dbias[0]
            dx = conv.dx(perform, own, x, dconv) if of_x else None
            return {f"{name}.{key}": gradient for key, gradient in gradients.items()}, dx

        return y, backward


def _forward(
    x: Any,
    weight: Any,
    bias: Any,
    *,
    window: Any,
    groups: int,
    precision: str,
    pooled: bool,
    is_to_be_scaled: bool,
) -> tuple[Any, ...] | None:
    """The output, and if it is pooled the winners; None where the kernels for that do not serve."""
    p, q = window.p(x.shape), window.q(x.shape)
    if pooled and launch_conv.serves(x):
        problem = first_block.problem_of(x, weight, window, groups)
        if first_block.serves(problem):
            return first_block.forward(
                x, weight, None if bias is None else in_one_piece(bias), problem, is_to_be_scaled
            )
    y = x.empty((x.shape[0], weight.shape[0], p, q))
    if pooled and not pool_by_twos.serves(y):
        return None
    if not served(launch_conv.conv2d, x, weight, bias, y, window, groups, precision, True):
        return None
    if not pooled:
        return (y,)
    least = with_greatest(y.empty((*y.shape[:2], p // 2, q // 2)), is_to_be_scaled)
    winner = pool_by_twos.winners(least)
    pool_by_twos.pool(y, least, winner, is_gate=True, greatest=least.greatest)
    return least, winner


def _first_gradients(dy: Any, winner: Any, x: Any, *, shape: tuple[int, ...], window: Any, groups: int) -> Any:
    """dweight and dbias of a first layer; None where first_block.py does not serve."""
    if not launch_conv.serves(x) or not dy.is_contiguous():
        return None
    dweight, dbias = x.empty(shape), x.empty(shape[:1])
    problem = first_block.problem_of(x, dweight, window, groups)
    is_served = first_block.serves(problem) and served(first_block.gradients, dy, winner, x, dweight, dbias, problem)
    return (dweight, dbias) if is_served else None


def _unpooled(dy: Any, winner: Any, *, shape: tuple[int, ...], of_bias: bool, is_to_be_scaled: bool) -> tuple[Any, ...]:
    """The gradient of the convolution's output, and that of its bias, which is summed while it is small."""
    dy, dconv = in_one_piece(dy), with_greatest(dy.empty(shape), is_to_be_scaled)
    pool_by_twos.unpool(dy, winner, dconv, dconv.greatest)
    if not of_bias:
        return (dconv,)
    dbias = dy.empty(shape[1:2])
    if not served(gated_bias_gradient, dy, winner, dbias):
        dbias = conv2d_dbias(dconv)
    return dconv, dbias


def blocks(steps: Sequence[Step]) -> tuple[Block, ...]:
    """The steps, with those that can be performed at once together."""
    if SIMULATED:
        return one_by_one(steps)
    found: list[Block] = []
    rest = list(steps)
    while rest:
        first = rest.pop(0)
        if isinstance(first.layer, Conv2d) and rest and isinstance(rest[0].layer, ReLU):
            taken = [first, rest.pop(0)]
            pooled = bool(rest) and isinstance(rest[0].layer, MaxPool2d) and _by_twos(rest[0].layer)
            if pooled:
                taken.append(rest.pop(0))
            feeds_convolution = bool(rest) and isinstance(rest[0].layer, Conv2d)
            found.append(Fused(tuple(taken), first.layer, pooled, feeds_convolution))
        else:
            found.append(Single(first))
    return tuple(found)


def _by_twos(layer: MaxPool2d) -> bool:
    return pool_by_twos.is_by_twos(layer.window) and not layer.window.ceil_mode
