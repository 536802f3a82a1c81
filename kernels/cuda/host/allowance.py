"""What the user allows algorithms to take, and which of them serve within it."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from kernelproof.kernels import limits
from kernelproof.spec.errors import UnsupportedError


class _ExceededError(Exception):
    """An algorithm asks for more memory than is allowed."""


_thread = threading.local()


def count(size: int) -> None:
    """An algorithm takes so many bytes; raises what `served` catches if they are more than are left to it."""
    left = getattr(_thread, "left", None)
    if left is not None:
        if size > left:
            raise _ExceededError
        _thread.left = left - size


@contextlib.contextmanager
def _allowed(size: int) -> Iterator[None]:
    _thread.left = size
    try:
        yield
    finally:
        _thread.left = None


def most_lines(operator: str, line: int, lines: int) -> int:
    """How many lines of so many bytes an algorithm may take, at least one; raises UnsupportedError if none."""
    limit = limits.workspace()
    if limit is not None and line > limit:
        raise UnsupportedError(
            operator, f"workspace_limit({limit})", f"{line} bytes for the smallest algorithm", "Raise the limit."
        )
    return max(1, lines if limit is None or line == 0 else min(lines, limit // line))


def served(algorithm: Callable[..., bool], *arguments: Any) -> bool:
    """Whether the algorithm computes the result, in as many bytes as the user allows.

    What it launched before it asked for too many has no effect: another algorithm writes the whole result anew.
    """
    limit = limits.workspace()
    if limit is None:
        return algorithm(*arguments)
    try:
        with _allowed(limit):
            return algorithm(*arguments)
    except _ExceededError:
        return False
