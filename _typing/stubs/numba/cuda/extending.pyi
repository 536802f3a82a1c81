from collections.abc import Callable
from typing import Any

def intrinsic(code: Callable[..., Any], /) -> Callable[..., Any]: ...
