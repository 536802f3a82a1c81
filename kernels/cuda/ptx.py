"""What numba-cuda has no words for: PTX instructions as device functions, for tensor cores and copies.

Letters as in inline assembly: `f` float32, `r` int32, `l` int64. Addresses in shared memory are int32, in device memory
int64. Nothing here works in the simulator. Source: PTX ISA 8.4, chapters 9.7.8 (loads, stores, copies), 9.7.12
(barriers), 9.7.15 (wgmma).
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.cuda import types
from numba.cuda.extending import intrinsic

F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_IR = {"f": F32, "r": I32, "l": I64}
_NUMBA = {"f": types.float32, "r": types.int32, "l": types.int64}
SHARED, GLOBAL = 3, 1
"""Address spaces."""


def device_function(signature: Any, generate: Callable[[Any, list[Any]], Any]) -> Any:
    """A device function of the IR that `generate(builder, arguments)` builds: it returns None, one value or a list."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = generate(builder, list(arguments))
        if value is None:
            return context.get_dummy_value()
        return context.make_tuple(builder, signature.return_type, value) if isinstance(value, list) else value

    def typed(typingctx: Any, *arguments: Any) -> Any:
        return signature, lower

    # numba folds a call's arguments by the signature that it sees here, and has no way with *arguments.
    names = ["typingctx", *(f"argument{i}" for i in range(len(signature.args)))]
    typed.__signature__ = inspect.Signature(
        [inspect.Parameter(each, inspect.Parameter.POSITIONAL_ONLY) for each in names]
    )
    return intrinsic(typed)


def emit(
    builder: Any, text: str, results: str, operands: str, values: Sequence[Any], tied: Sequence[Any] = (), pure=False
) -> list[Any]:
    """Inline PTX: `$0` and on are its results, of which the first start out as the `tied` values, then its operands."""
    kinds = [_IR[letter] for letter in results]
    returned = ir.LiteralStructType(kinds) if len(kinds) > 1 else kinds[0] if kinds else ir.VoidType()
    constraints = [f"={letter}" for letter in results] + list(operands) + [str(i) for i in range(len(tied))]
    function = ir.FunctionType(returned, [_IR[letter] for letter in operands] + kinds[: len(tied)])
    constraints += [] if pure else ["~{memory}"]
    assembly = ir.InlineAsm(function, text, ",".join(constraints), side_effect=not pure)
    result = builder.call(assembly, [*values, *tied])
    return [builder.extract_value(result, i) for i in range(len(kinds))] if len(kinds) > 1 else [result]


def instruction(text: str, results: str = "", operands: str = "", pure: bool = False) -> Any:
    """A device function of inline PTX."""
    kinds = [_NUMBA[letter] for letter in results]
    returned = types.UniTuple(kinds[0], len(kinds)) if len(kinds) > 1 else kinds[0] if kinds else types.void

    def generate(builder: Any, arguments: list[Any]) -> Any:
        values = emit(builder, text, results, operands, arguments, pure=pure)
        return values if len(kinds) > 1 else values[0] if kinds else None

    return device_function(returned(*(_NUMBA[letter] for letter in operands)), generate)


def unpacked(builder: Any, values: Any, count: int) -> list[Any]:
    """The entries of a tuple."""
    return [builder.extract_value(values, i) for i in range(count)]


def constant(value: int) -> ir.Constant:
    """A 32-bit integer."""
    return ir.Constant(I32, value)


def store_words(builder: Any, address: Any, words: Sequence[Any], space: int = SHARED) -> None:
    """One store of up to four 32-bit words, aligned to their size."""
    vector = ir.Constant(ir.VectorType(words[0].type, len(words)), ir.Undefined)
    for i, word in enumerate(words):
        vector = builder.insert_element(vector, word, constant(i))
    store = builder.store(vector, builder.inttoptr(address, ir.PointerType(vector.type, space)))
    store.align = 4 * len(words)


def _load(space: int, address: Any, scalar: Any, kind: Any) -> Any:
    def generate(builder: Any, arguments: list[Any]) -> Any:
        value = builder.load(builder.inttoptr(arguments[0], ir.PointerType(kind, space)))
        value.align = 4
        return value

    return device_function(scalar(address), generate)


def _store(space: int, address: Any, *scalars: Any) -> Any:
    def generate(builder: Any, arguments: list[Any]) -> None:
        store_words(builder, arguments[0], arguments[1:], space)

    return device_function(types.void(address, *scalars), generate)


def _dynamic_shared(builder: Any, arguments: list[Any]) -> Any:
    name, symbols = "dynamic_shared", builder.module.globals
    if name not in symbols:
        symbol: Any = ir.GlobalVariable(builder.module, ir.ArrayType(ir.IntType(8), 0), name, addrspace=SHARED)
        symbol.linkage, symbol.align = "external", 1024
    return builder.ptrtoint(symbols[name], I32)


dynamic_shared = device_function(types.int32(), _dynamic_shared)
load_shared = _load(SHARED, types.int32, types.float32, F32)
load_shared_word = _load(SHARED, types.int32, types.int32, I32)
load_global = _load(GLOBAL, types.int64, types.float32, F32)
load_global_word = _load(GLOBAL, types.int64, types.int32, I32)
store_shared = _store(SHARED, types.int32, types.float32)
store_shared_word = _store(SHARED, types.int32, types.int32)
store_global = _store(GLOBAL, types.int64, types.float32)
store_global_word = _store(GLOBAL, types.int64, types.int32)
store_byte = instruction("st.global.u8 [$0], $1;", "", "lr")
load_byte = instruction("ld.global.u8 $0, [$1];", "r", "l")
word_of = instruction("mov.b32 $0, $1;", "r", "f", pure=True)
float_of = instruction("mov.b32 $0, $1;", "f", "r", pure=True)
maximum_global = instruction("red.global.max.u32 [$0], $1;", "", "lr")

barrier_init = instruction("mbarrier.init.shared::cta.b64 [$0], $1;", "", "rr")
barrier_publish = instruction("fence.mbarrier_init.release.cluster;")
barrier_arrive = instruction("mbarrier.arrive.shared::cta.b64 _, [$0];", "", "r")
barrier_expect = instruction("mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;", "", "rr")
barrier_wait = instruction(
    "{ .reg .pred done; again_${:uid}: mbarrier.try_wait.parity.shared::cta.b64 done, [$0], $1; "
    "@done bra over_${:uid}; bra again_${:uid}; over_${:uid}: }",
    "",
    "rr",
)
bulk_copy = instruction(
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1], $2, [$3];", "", "rlrr"
)
# Warpgroups that take turns: one waits for its turn, the other gives it; the count is of threads of both.
turn_wait = instruction("barrier.cta.sync.aligned $0, $1;", "", "rr")
turn_give = instruction("barrier.cta.arrive.aligned $0, $1;", "", "rr")
# A thread's copies run by themselves; those until here are one group.
commit_copies = instruction("cp.async.commit_group;")
wait_for_copies = instruction("cp.async.wait_all;")
wait_for_all_but_last_copies = instruction("cp.async.wait_group 1;")
# What ordinary stores wrote to shared memory, tensor cores and the copy engine see only after this.
publish_shared = instruction("fence.proxy.async.shared::cta;")


def registers(count: int, more: bool) -> Any:
    """Give registers back to the block's pool, or take them; the whole warpgroup, at the start of its branch."""
    return instruction(f"setmaxnreg.{'inc' if more else 'dec'}.sync.aligned.u32 {count};")
