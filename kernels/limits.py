"""What the user allows kernels to take: memory to work in."""

import contextlib
from collections.abc import Iterator

from kernelproof.spec.errors import ParameterError

_workspace: int | None = None


def workspace() -> int | None:
    """The bytes that a kernel's workspace may take; None if the user set no limit."""
    return _workspace


@contextlib.contextmanager
def workspace_limit(size: int | None) -> Iterator[None]:
    """In this block kernels work in at most `size` bytes beside their arguments and results, None for as many as pay.

    Where the algorithm that was faster needs more, a smaller one is taken; calls for which none is small enough raise
    UnsupportedError. Raises ParameterError.
    """
    global _workspace
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 0):
        raise ParameterError("workspace_limit", f"{size!r}", "bytes, a whole number from 0, or None", "Pass one.")
    before, _workspace = _workspace, size
    try:
        yield
    finally:
        _workspace = before
