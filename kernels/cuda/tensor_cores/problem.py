"""A convolution in sizes and strides, and the arithmetic of its slots.

The fast kernels see a convolution as `y[n,k,p,q] = sum_crs x[n, c, p*stride + r*dilation - before, ...] *
weight[k,c,r,s]`, x, weight and y with strides of their own. So an input gradient is one as well, of dy with the filter
turned, a gradient through stride s is s*s of them, each for the pixels of one phase, and layouts are only strides.
"""

from dataclasses import dataclass

MOST_SLOTS = 4
"""Slots for a pixel that are laid out beforehand."""


@dataclass(frozen=True)
class Problem:
    """A convolution in sizes and strides (of n, c, h, w and k, c, r, s), all in elements; `channels` of one group."""

    images: int
    groups: int
    channels: int
    filters: int
    taps: tuple[int, int]
    image: tuple[int, int]
    output: tuple[int, int]
    stride: tuple[int, int]
    before: tuple[int, int]
    dilation: tuple[int, int]
    x_strides: tuple[int, int, int, int]
    w_strides: tuple[int, int, int, int, int]  # from group to group first
    y_strides: tuple[int, int, int, int]


def pitch_of(size: int, output: int, stride: int, before: int, taps: int, farthest: int) -> int:
    """How many slots lie from an image, or from a row, to the next.

    Output p reads positions p .. p+taps-1, and position i lies at `i*stride + a - before`, a in 0 .. farthest. What
    lies outside of the image at the end of one row does so at the start of the next: they share their padding.
    """
    positions = output + taps - 1
    empty_first = max(0, -((farthest - before) // stride))
    empty_last = max(0, positions + (-(size + before) // stride))
    return max(output, positions - min(empty_first, empty_last))


def division(divisor: int) -> tuple[int, int]:
    """Multiplier and shift with `n // divisor = n*multiplier >> shift` for `0 <= n < 2**31`.

    The multiplier exceeds `2**shift / divisor` by less than 1, so the product is too great by less than n, which is
    less than `2**shift / divisor`. Source: Granlund and Montgomery, Division by invariant integers, PLDI 1994.
    """
    shift = 31 + (divisor - 1).bit_length()
    multiplier = -(-(1 << shift) // divisor)
    return (multiplier - 2**32 if multiplier >= 2**31 else multiplier), shift  # As a signed word.


def are_few(slots: int, pixels: int) -> bool:
    """Whether so many slots may be laid out for so many pixels: far padding and dilation make them many more."""
    return slots < min(MOST_SLOTS * pixels + 2**16, 2**27)
