"""The way out of the computation: arrays brought home from a device, files written whole or not at all."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def on_host(array: Any) -> np.ndarray:
    """The array in host memory; a device array is copied, a numpy array stays itself."""
    return array.copy_to_host() if hasattr(array, "copy_to_host") else np.asarray(array)


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write beside the target, then rename over it: an interruption leaves the old file or none. Raises OSError."""
    path = Path(path)
    # In the same folder, because a rename is atomic within one file system only.
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.umask(mask := os.umask(0))  # Reads the mask: mkstemp's file is private, open() would give these rights.
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
