"""Each image's greatest magnitude, told by the kernel that writes the images: a convolution that scales them (`fast`)
need not look for it."""

import dataclasses

from numba import cuda
from numba.cuda import types

from .. import ptx
from ..host.arrays import DeviceArray
from ..host.driver import fill_with_zeros
from ..tensor_cores.slots import SHARES


@cuda.jit(device=True)
def magnitude_of(value):
    """A number's magnitude as a word, which compares as it does; 0 for NaN and infinities, which are computed apart."""
    word = types.int32(ptx.word_of(value) & 0x7FFFFFFF)
    return word if word < 0x7F800000 else types.int32(0)


@cuda.jit(device=True)
def tell_greatest(greatest, n, word, share):
    """A warp's words, each of image n of its lane, to a share of the images' greatest: a maximum of integers, so the
    order does not matter."""
    lane, word = cuda.threadIdx.x & 31, types.int32(word)
    if cuda.all_sync(0xFFFFFFFF, cuda.shfl_sync(0xFFFFFFFF, n, 0) == n):
        for lanes in (16, 8, 4, 2, 1):
            word = max(word, cuda.shfl_xor_sync(0xFFFFFFFF, word, lanes))
        if lane > 0:
            word = types.int32(0)
    if word > 0:
        ptx.maximum_global(greatest + (types.int64(n) * SHARES + share % SHARES) * 4, types.int32(word))


def with_greatest(images: DeviceArray, is_asked: bool) -> DeviceArray:
    """The images, which nobody has written yet, with what is to hold their greatest magnitudes if that is asked for."""
    if not is_asked:
        return images
    words = images.empty((len(images) * SHARES,), "int32")
    fill_with_zeros(words)
    return dataclasses.replace(images, greatest=words)
