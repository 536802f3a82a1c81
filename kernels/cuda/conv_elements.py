"""One element of a convolution and of its gradients, computed plainly: what the plain kernels loop over."""

from numba import cuda

from .launch import THREADS, block_sum, position, reader


@cuda.jit(device=True)
def pixel_at(x, n, c, h, w):
    """The input as the window sees it: zero outside of the image."""
    if 0 <= h < x.shape[2] and 0 <= w < x.shape[3]:
        return x[n, c, h, w]
    return x.dtype.type(0)


@cuda.jit(device=True)
def output_at(x, weight, bias, n, k, p, q, stride, padding, dilation, groups):
    """One element of conv2d."""
    filters, channels = weight.shape[0] // groups, weight.shape[1]  # of one group
    total = x.dtype.type(0)
    for c in range(channels):
        for r in range(weight.shape[2]):
            h = p * stride[0] + r * dilation[0] - padding[0][0]
            for s in range(weight.shape[3]):
                w = q * stride[1] + s * dilation[1] - padding[1][0]
                total += pixel_at(x, n, k // filters * channels + c, h, w) * weight[k, c, r, s]
    if bias.size > 0:
        total += bias[k]
    return total


@cuda.jit(device=True)
def input_gradient_at(dy, weight, n, c, h, w, stride, padding, dilation, groups):
    """One element of conv2d_dx."""
    filters, channels = weight.shape[0] // groups, weight.shape[1]  # of one group
    first = c // channels * filters
    total = dy.dtype.type(0)
    for k in range(first, first + filters):
        for r in range(weight.shape[2]):
            p = reader(h, r, stride[0], padding[0][0], dilation[0], dy.shape[2])
            if p < 0:
                continue
            for s in range(weight.shape[3]):
                q = reader(w, s, stride[1], padding[1][0], dilation[1], dy.shape[3])
                if q >= 0:
                    total += dy[n, k, p, q] * weight[k, c % channels, r, s]
    return total


@cuda.jit(device=True)
def weight_gradient_of(dy, x, dweight, k, c, r, s, stride, padding, dilation, groups, partial):
    """One element of conv2d_dweight, by a whole block."""
    filters, channels = dweight.shape[0] // groups, dweight.shape[1]  # of one group
    total = dweight.dtype.type(0)
    for j in range(cuda.threadIdx.x, dy.shape[0] * dy.shape[2] * dy.shape[3], THREADS):
        n, _, p, q = position(j, (dy.shape[0], 1, dy.shape[2], dy.shape[3]))
        h = p * stride[0] + r * dilation[0] - padding[0][0]
        w = q * stride[1] + s * dilation[1] - padding[1][0]
        total += dy[n, k, p, q] * pixel_at(x, n, k // filters * channels + c, h, w)
    total = block_sum(total, partial)
    if cuda.threadIdx.x == 0:
        dweight[k, c, r, s] = total
