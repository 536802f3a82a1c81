"""Kernels with the faults of others, each of which the laws must find, and correct ones that they must leave alone."""

from . import controls, conv, conv_gradients, dense, fourier, pool, validation  # noqa: F401 - they fill the collection
from .collection import CONTROLS, MUSEUM, Control, Mutant
from .waiting import WAITING, Waiting

__all__ = ["CONTROLS", "MUSEUM", "WAITING", "Control", "Mutant", "Waiting"]
