"""How operators are computed fast. Same names and arguments as `kernelproof.spec`; the arrays decide where they run.

numpy arrays run on all CPU cores, arrays with `__cuda_array_interface__` (torch, cupy, numba) on their GPU. float32 and
float64; `precision` says what rounding is allowed. Nothing is compiled or imported before the first call.
"""

if __name__ != "kernelproof.kernels":
    raise ImportError("import kernelproof.kernels, not kernels: the folder is the package's source")

from kernelproof import spec

from .contract import KERNELS, implements
from .dispatch import Backend, backend, on_kernels
from .limits import workspace_limit
from .tuning import tuned

conv2d = on_kernels(spec.conv2d)
conv2d_dx = on_kernels(spec.conv2d_dx)
conv2d_dweight = on_kernels(spec.conv2d_dweight)
conv2d_dbias = on_kernels(spec.conv2d_dbias)
max_pool2d = on_kernels(spec.max_pool2d)
max_pool2d_dx = on_kernels(spec.max_pool2d_dx)
linear = on_kernels(spec.linear)
linear_dx = on_kernels(spec.linear_dx)
linear_dweight = on_kernels(spec.linear_dweight)
linear_dbias = on_kernels(spec.linear_dbias)
relu = on_kernels(spec.relu)
relu_dx = on_kernels(spec.relu_dx)
flatten = on_kernels(spec.flatten)
flatten_dx = on_kernels(spec.flatten_dx)
cross_entropy = on_kernels(spec.cross_entropy)
cross_entropy_dlogits = on_kernels(spec.cross_entropy_dlogits)
sgd = on_kernels(spec.sgd)

__all__ = [
    "KERNELS",
    "Backend",
    "backend",
    "conv2d",
    "conv2d_dbias",
    "conv2d_dweight",
    "conv2d_dx",
    "cross_entropy",
    "cross_entropy_dlogits",
    "flatten",
    "flatten_dx",
    "implements",
    "linear",
    "linear_dbias",
    "linear_dweight",
    "linear_dx",
    "max_pool2d",
    "max_pool2d_dx",
    "relu",
    "relu_dx",
    "sgd",
    "tuned",
    "workspace_limit",
]
