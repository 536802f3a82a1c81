"""A loop over workers in compiled code: one parallel region, compiled once, that all cores hand their tasks to.

A region that numba compiles into each core takes about a second of its own, most of a core's compilation; handing over
an address and a place in memory takes none.
"""

from llvmlite import ir
from numba import njit, prange
from numba.core import cgutils, types

from .launch import WITHIN
from .vectors import INT, call, intrinsic


@njit(parallel=True, **WITHIN)
def _on_threads(workers, routine, arguments):
    for worker in prange(workers):
        call(routine, (worker, arguments))


@intrinsic
def on_workers(typing_context, workers, body, arguments):
    """`body(worker, *arguments)` for each worker in `range(workers)`, on threads of their own if there are several.

    `body` is a jitted function whose result does not count; from jitted code. What it raises can only be that there is
    no memory left: MemoryError is raised when all workers are done.
    """
    of_body = body.get_call_type(typing_context, (types.int64, *map(types.unliteral, arguments)), {})
    on_threads = types.Dispatcher(_on_threads)
    of_threads = on_threads.get_call_type(typing_context, (types.int64,) * 3, {})

    def code(context, builder, signature, values):
        _, _, packed = values
        workers = context.cast(builder, values[0], signature.args[0], types.int64)
        # The arguments wait on the caller's stack until all workers are done, and behind them whether one failed.
        kind = ir.LiteralStructType([packed.type, INT])
        waiting = cgutils.alloca_once(builder, kind)
        builder.store(packed, cgutils.gep_inbounds(builder, waiting, 0, 0))
        failed = cgutils.gep_inbounds(builder, waiting, 0, 1)
        builder.store(INT(0), failed)
        routine = _routine(context, builder.module, body.dispatcher.get_compile_result(of_body), kind)
        routine, place = (builder.ptrtoint(each, INT) for each in (routine, waiting))
        with builder.if_else(builder.icmp_signed("==", workers, INT(1))) as (alone, together):
            with alone:
                kind = ir.FunctionType(ir.VoidType(), [INT, INT]).as_pointer()
                builder.call(builder.inttoptr(routine, kind), [INT(0), place])
            with together:
                context.get_function(on_threads, of_threads)(builder, [workers, routine, place])
        with builder.if_then(builder.icmp_signed("!=", builder.load(failed), INT(0)), likely=False):
            context.call_conv.return_user_exc(builder, MemoryError, ("no memory for what a worker needs",))
        return context.get_dummy_value()

    return types.void(types.int64, body, arguments), code


def _routine(context, module, compiled, kind_of_place):
    """A routine `(worker, place)` that calls a compiled body with the arguments that stand there; says if it fails."""
    context.active_code_library.add_linking_library(compiled.library)
    kind = ir.FunctionType(ir.VoidType(), [INT, INT])
    routine = ir.Function(module, kind, module.get_unique_name("worker"))
    routine.linkage = "internal"
    builder, (worker, place) = ir.IRBuilder(routine.append_basic_block()), routine.args
    place = builder.inttoptr(place, kind_of_place.as_pointer())
    whole = builder.load(cgutils.gep_inbounds(builder, place, 0, 0))
    its, convention = compiled.fndesc, context.call_conv
    body = cgutils.get_or_insert_function(
        module, convention.get_function_type(its.restype, its.argtypes), its.llvm_func_name
    )
    arguments = [
        worker,
        *(builder.extract_value(whole, index) for index in range(len(kind_of_place.elements[0].elements))),
    ]
    status, _ = convention.call_function(builder, body, its.restype, its.argtypes, arguments)
    with builder.if_then(status.is_error, likely=False):
        builder.store(INT(1), cgutils.gep_inbounds(builder, place, 0, 1))
    builder.ret_void()
    return routine
