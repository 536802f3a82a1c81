"""Parameters on disk, as safetensors under PyTorch's keys: `torch` reads them, and nothing in the file is code."""

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from kernelproof.spec.chain import SpecChain
from kernelproof.spec.errors import KernelproofError, UnsupportedError
from kernelproof.spec.parameters import Parameters

from .host import on_host, write_whole


class CheckpointError(KernelproofError):
    """The file is not a checkpoint, or is damaged."""


def save_checkpoint(parameters: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the parameters, whole or not at all. Raises UnsupportedError (exact scalars), OSError."""
    arrays = {key: np.ascontiguousarray(on_host(array)) for key, array in parameters.items()}
    for key, array in arrays.items():
        if array.dtype == object:
            raise UnsupportedError(
                "save_checkpoint",
                f"{key} of exact scalars",
                "fixed-size numbers",
                "Convert with .astype(numpy.float64).",
            )
    write_whole(path, safetensors.numpy.save(arrays, {"producer": f"kernelproof {version('kernelproof')}"}))


def load_checkpoint(chain: SpecChain, path: str | os.PathLike[str]) -> Parameters:
    """The parameters in the file, if they are this chain's.

    Raises CheckpointError (not a checkpoint), ParameterError (a key missing or unknown), ShapeError, OSError.
    """
    try:
        arrays = safetensors.numpy.load(Path(path).read_bytes())
    except SafetensorError as error:
        raise CheckpointError(
            "load_checkpoint", f"{path}: {error}", "a whole safetensors file", "Save it again with save_checkpoint."
        ) from error
    return chain.parameters(arrays)
