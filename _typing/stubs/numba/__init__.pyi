"""What this project uses of numba at its root; all its modules but `numba.cuda` are read where they are installed."""

from typing import Any

from numba.core import types as types
from numba.core.decorators import njit as njit
from numba.misc.special import prange as prange
from numba.np.ufunc import get_num_threads as get_num_threads
from numba.np.ufunc import set_num_threads as set_num_threads
from numba.np.ufunc import threading_layer as threading_layer

from . import cuda as cuda
from . import extending as extending

__version__: str
config: Any  # A module whose names numba makes from the environment.
