"""The words that micro-kernels are written in: vectors of float32 in LLVM's own language, compiled for this processor.

`@micro_kernel` makes a family of machine routines from a function that writes them out: its positional parameters are
addresses and counts at run time, its keywords are constants of one member. A member is compiled when first asked for,
in hundredths of a second, and kept on disk. Jitted code calls it by its address, so nothing is inlined and nothing
compiled twice.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec

from llvmlite import ir
from numba import extending
from numba.core import types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from kernelproof.kernels.jit_cache import kept_library

P = ParamSpec("P")

FLOAT, INT, INT32, BIT = ir.FloatType(), ir.IntType(64), ir.IntType(32), ir.IntType(1)


def intrinsic(code: Callable[Concatenate[Any, P], Any]) -> Callable[P, Any]:
    """numba's decorator, typed as jitted code calls what it makes: without the typing context."""
    return extending.intrinsic(code)  # pyright: ignore[reportReturnType] - it has the context, too.


def _code_generator() -> Any:
    """numba's, for this processor."""
    return cpu_target.target_context.codegen()  # pyright: ignore[reportAttributeAccessIssue] - a property, untyped.


def _lanes() -> int:
    """Floats in a vector register of the processor that numba compiles for."""
    # What was forced by NUMBA_CPU_FEATURES, not what the machine would have.
    features = set(_code_generator()._tm_features.split(","))
    return 16 if "+avx512f" in features else 8 if "+avx2" in features else 4


LANES = _lanes()

REGISTERS = {16: 32, 8: 16, 4: 32}[LANES]
"""Vector registers of the processor, by their lanes: AVX-512, AVX2, NEON."""


def processor() -> str:
    """The processor that numba compiles for, by LLVM's name."""
    return _code_generator()._get_host_cpu_name()


class Words:
    """Writes vector instructions into one function. Addresses and counts are 64-bit integers; offsets are in bytes."""

    def __init__(self, builder: ir.IRBuilder, lanes: int) -> None:
        self.builder, self.lanes, self.size = builder, lanes, 4 * lanes
        self.vector = ir.VectorType(FLOAT, lanes)
        self.mask = ir.VectorType(BIT, lanes)
        # AVX-512 stores under a mask as fast as without; on AVX2 that takes 12 cycles, on NEON a branch for each lane.
        self.stores_masked = lanes == 16

    def number(self, value: int) -> Any:
        """A constant count or offset."""
        return ir.Constant(INT, value)

    def constant(self, value: float) -> Any:
        """A vector whose lanes all hold `value`."""
        return ir.Constant(self.vector, [float(value)] * self.lanes)

    def integers(self, value: int) -> Any:
        """A vector of 32-bit integers that are all `value`: as many as there are lanes, with as many bits as floats."""
        return ir.Constant(ir.VectorType(INT32, self.lanes), [value] * self.lanes)

    def rectified(self, vector: Any) -> Any:
        """`relu`, which is not a maximum: NaN stays NaN."""
        is_negative = self.builder.fcmp_ordered("<", vector, self.constant(0))
        return self.builder.select(is_negative, self.constant(0), vector)

    def at(self, address: Any, offset: Any) -> Any:
        """`address + offset`, both in bytes."""
        return self.builder.add(address, self.number(offset) if isinstance(offset, int) else offset)

    def times(self, a: Any, b: Any) -> Any:
        """The product of two counts."""
        return self.builder.mul(*(self.number(each) if isinstance(each, int) else each for each in (a, b)))

    def load(self, address: Any) -> Any:
        return self.builder.load(self._pointer(address, self.vector), align=4)

    def store(self, vector: Any, address: Any) -> None:
        self.builder.store(vector, self._pointer(address, vector.type), align=4)

    def load_integer(self, address: Any) -> Any:
        return self.builder.load(self._pointer(address, INT), align=8)

    def prefetch(self, address: Any, to_write: bool = False) -> None:
        """Start to bring the line at `address` near: it need not be memory."""
        arguments = (self._pointer(address, FLOAT), *(ir.Constant(INT32, each) for each in (int(to_write), 2, 1)))
        self.builder.call(self._declared("llvm.prefetch.p0", ir.VoidType(), arguments), arguments)

    def splat(self, address: Any) -> Any:
        """A vector whose lanes all hold the float at `address`."""
        return self.broadcast(self.builder.load(self._pointer(address, FLOAT), align=4))

    def broadcast(self, scalar: Any) -> Any:
        """A vector whose lanes all hold `scalar`, a float or an integer."""
        undefined = ir.Constant(ir.VectorType(scalar.type, self.lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(INT32, 0))
        return self.shuffle(first, undefined, [0] * self.lanes)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """`a*b + c`, rounded once."""
        return self._intrinsic("llvm.fma", self.vector, a, b, c)

    def shuffle(self, a: Any, b: Any, lanes: Sequence[int]) -> Any:
        """Lanes of a, then (counted on) of b, in the order given."""
        order = ir.Constant(ir.VectorType(INT32, len(lanes)), list(lanes))
        return self.builder.shuffle_vector(a, b, order)

    def first(self, count: Any) -> Any:
        """The mask of the first `count` lanes: none below one, all beyond `lanes`."""
        most, least = self.number(self.lanes), self.number(0)
        count = self.builder.select(self.builder.icmp_signed("<", count, most), count, most)
        count = self.builder.select(self.builder.icmp_signed(">", count, least), count, least)
        return self.inside(least, count)

    def inside(self, first: Any, size: Any, step: int = 1) -> Any:
        """The mask of the lanes for which `0 <= first + lane*step < size`."""
        # Sizes are below 2**31. Unsigned, what is below zero is beyond every size.
        first, size = (self.broadcast(self.builder.trunc(each, INT32)) for each in (first, size))
        positions = ir.Constant(first.type, [lane * step for lane in range(self.lanes)])
        return self.builder.icmp_unsigned("<", self.builder.add(first, positions), size)

    def load_where(self, mask: Any, address: Any, otherwise: float = 0) -> Any:
        """`otherwise` in the other lanes, whose memory is not touched."""
        name = f"llvm.masked.load.v{self.lanes}f32.p0"
        arguments = (self._pointer(address, self.vector), ir.Constant(INT32, 4), mask, self.constant(otherwise))
        return self.builder.call(self._declared(name, self.vector, arguments), arguments)

    def store_where(self, mask: Any, vector: Any, address: Any) -> None:
        """The other lanes' memory is not touched. A vector of 64-bit integers is stored likewise."""
        kind, align = ("f32", 4) if vector.type == self.vector else ("i64", 8)
        name = f"llvm.masked.store.v{self.lanes}{kind}.p0"
        arguments = (vector, self._pointer(address, vector.type), ir.Constant(INT32, align), mask)
        self.builder.call(self._declared(name, ir.VoidType(), arguments), arguments)

    def store_first(self, count: Any, vector: Any, address: Any) -> None:
        """The first `count` lanes, mostly all: where masks are slow, only what is less than all is stored under one."""
        if self.stores_masked:
            self.store_where(self.first(count), vector, address)
            return
        is_whole = self.builder.icmp_signed(">=", count, self.number(self.lanes))
        with self.builder.if_else(is_whole) as (whole, part):
            with whole:
                self.store(vector, address)
            with part:
                self.store_where(self.first(count), vector, address)

    def store_past(self, vector: Any, address: Any) -> None:
        """Stored past the caches, at an address aligned to whole vectors: for what is not soon read again."""
        stored = self.builder.store(vector, self._pointer(address, self.vector), align=self.size)
        stored.set_metadata("nontemporal", self.builder.module.add_metadata([ir.Constant(INT32, 1)]))

    def gather(self, mask: Any, address: Any, step: int, otherwise: float = 0) -> Any:
        """Every `step`-th float from `address` on, `otherwise` where the mask has none and no memory is touched."""
        pointer = ir.PointerType()
        pointers = ir.Constant(ir.VectorType(pointer, self.lanes), ir.Undefined)
        for lane in range(self.lanes):
            each = self.builder.inttoptr(self.at(address, 4 * step * lane), pointer)
            pointers = self.builder.insert_element(pointers, each, ir.Constant(INT32, lane))
        name = f"llvm.masked.gather.v{self.lanes}f32.v{self.lanes}p0"
        arguments = (pointers, ir.Constant(INT32, 4), mask, self.constant(otherwise))
        return self.builder.call(self._declared(name, self.vector, arguments), arguments)

    def any(self, mask: Any) -> Any:
        """Whether the mask has a lane."""
        bits = ir.IntType(self.lanes)
        return self.builder.icmp_unsigned("!=", self.builder.bitcast(mask, bits), ir.Constant(bits, 0))

    def transpose(self, rows: Sequence[Any]) -> list[Any]:
        """The square of `lanes` vectors turned, in log2(lanes) rounds of swapping ever larger blocks."""
        turned, step = list(rows), 1
        while step < self.lanes:
            below = [lane if not lane & step else self.lanes + lane - step for lane in range(self.lanes)]
            above = [lane + step if not lane & step else self.lanes + lane for lane in range(self.lanes)]
            for row in range(self.lanes):
                if not row & step:
                    pair = turned[row], turned[row + step]
                    turned[row], turned[row + step] = self.shuffle(*pair, below), self.shuffle(*pair, above)
            step *= 2
        return turned

    @contextlib.contextmanager
    def loop(self, count: Any, *carried: Any) -> Iterator["Loop"]:
        """Runs the block `count` times, not at all below one. The carried values stay in registers."""
        builder, before = self.builder, self.builder.block
        body, after = builder.append_basic_block(), builder.append_basic_block()
        builder.cbranch(builder.icmp_signed(">", count, self.number(0)), body, after)
        builder.position_at_end(body)
        index, values = builder.phi(INT), tuple(builder.phi(each.type) for each in carried)
        loop = Loop(index, values)
        yield loop
        end, next_index = builder.block, builder.add(index, self.number(1))
        index.add_incoming(self.number(0), before)
        index.add_incoming(next_index, end)
        for phi, first, following in zip(values, carried, loop.following, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(following, end)
        builder.cbranch(builder.icmp_signed("<", next_index, count), body, after)
        builder.position_at_end(after)
        for first, following in zip(carried, loop.following, strict=True):
            phi = builder.phi(first.type)
            phi.add_incoming(first, before)
            phi.add_incoming(following, end)
            loop.results.append(phi)

    def _pointer(self, address: Any, kind: Any) -> Any:
        return self.builder.inttoptr(address, kind.as_pointer())

    def _intrinsic(self, name: str, result: Any, *arguments: Any) -> Any:
        return self.builder.call(self._declared(f"{name}.v{self.lanes}f32", result, arguments), arguments)

    def _declared(self, name: str, result: Any, arguments: Sequence[Any]) -> Any:
        module = self.builder.module
        kind = ir.FunctionType(result, [each.type for each in arguments])
        return module.globals.get(name) or ir.Function(module, kind, name)


class Loop:
    """One loop: the `index`, the `carried` values in this round, and after the loop the `results`."""

    def __init__(self, index: Any, carried: tuple[Any, ...]) -> None:
        self.index, self.carried = index, carried
        self.following: tuple[Any, ...] = ()
        self.results: list[Any] = []

    def carry(self, *values: Any) -> None:
        """What the next round starts from."""
        self.following = values


class MicroKernel:
    """A family of machine routines; `address(**constants)` compiles a member once and says where it stands."""

    def __init__(self, body: Callable[..., None]) -> None:
        functools.update_wrapper(self, body)  # pyright: ignore[reportArgumentType] - a name and text are all it needs.
        parameters = list(inspect.signature(body).parameters.values())[1:]
        self.body = body
        self.parameters = [each.name for each in parameters if each.kind is not each.KEYWORD_ONLY]
        self.address = functools.cache(self._compile)

    def name(self, **constants: int) -> str:
        """What a member is called."""
        return "_".join([self.body.__name__, *(f"{key}{value}" for key, value in sorted(constants.items()))])

    def write(self, module: ir.Module, lanes: int, **constants: int) -> None:
        """Write a member into an IR module."""
        kind = ir.FunctionType(ir.VoidType(), [INT] * len(self.parameters))
        function = ir.Function(module, kind, self.name(**constants))
        builder = ir.IRBuilder(function.append_basic_block())
        self.body(Words(builder, lanes), *function.args, **constants)
        builder.ret_void()

    @global_compiler_lock
    def _compile(self, **constants: int) -> int:
        name, codegen = self.name(**constants), _code_generator()

        def compiled() -> Any:
            library = codegen.create_library(name)
            library.enable_object_caching()
            module = library.create_ir_module(name)
            self.write(module, LANES, **constants)
            library.add_ir_module(module)
            library.finalize()
            return library

        library = kept_library(f"{self.body.__module__}.{name}", codegen, compiled)
        _libraries.append(library)
        return library.get_pointer_to_function(name)


_libraries: list[Any] = []
"""Compiled routines: their code lives as long as these."""


def micro_kernel(body: Callable[..., None]) -> MicroKernel:
    """Decorates a function `(words, *addresses and counts, **constants)` that writes out a routine."""
    return MicroKernel(body)


@intrinsic
def take(typing_context, counter):
    """The next number of a counter, an array of one int64 that threads share."""

    def code(context, builder, signature, values):
        array = context.make_array(signature.args[0])(context, builder, values[0])
        return builder.atomic_rmw("add", array.data, ir.Constant(INT, 1), "monotonic")

    return types.int64(counter), code


@intrinsic
def call(typing_context, address, arguments):
    """Call the routine at `address` with a tuple of integers, from jitted code."""
    signature = types.void(types.int64, types.UniTuple(types.int64, len(arguments)))

    def code(context, builder, signature, values):
        address, packed = values
        unpacked = [builder.extract_value(packed, index) for index in range(packed.type.count)]
        routine = ir.FunctionType(ir.VoidType(), [INT] * len(unpacked)).as_pointer()
        builder.call(builder.inttoptr(address, routine), unpacked)
        return context.get_dummy_value()

    return signature, code
