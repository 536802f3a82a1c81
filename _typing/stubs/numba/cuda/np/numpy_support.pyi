import numpy as np

from ..types import Type

def from_dtype(dtype: np.dtype) -> Type: ...
