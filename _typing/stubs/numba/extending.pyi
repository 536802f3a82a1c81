from numba.core.extending import intrinsic as intrinsic
