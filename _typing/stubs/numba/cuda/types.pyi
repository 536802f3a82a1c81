"""Kinds of values that kernels are compiled for; numbers and `void` are called with kinds to make a signature."""

from typing import Any, overload

class _Signature:
    args: tuple[Type, ...]
    return_type: Type

class Type:
    def __call__(self, *arguments: Type) -> _Signature: ...

class Integer(Type):
    """In a kernel it is called with a number, which it converts."""

    @overload
    def __call__(self, *arguments: Type) -> _Signature: ...
    @overload
    def __call__(self, number: Any, /) -> int: ...

class Float(Type):
    @overload
    def __call__(self, *arguments: Type) -> _Signature: ...
    @overload
    def __call__(self, number: Any, /) -> float: ...

class BaseTuple(Type):
    def __iter__(self) -> Any: ...
    def __len__(self) -> int: ...

class UniTuple(BaseTuple):
    dtype: Type
    count: int
    def __init__(self, dtype: Type, count: int) -> None: ...

class Tuple(BaseTuple):
    types: tuple[Type, ...]
    def __init__(self, types: Any) -> None: ...

class NamedUniTuple(BaseTuple):
    def __init__(self, dtype: Type, count: int, cls: type[tuple[Any, ...]]) -> None: ...

class Array(Type):
    dtype: Type
    ndim: int
    def __init__(self, dtype: Type, ndim: int, layout: str) -> None: ...

void: Type
int32: Integer
int64: Integer
uint16: Integer
uint32: Integer
uint64: Integer
float32: Float
float64: Float
