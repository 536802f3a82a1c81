"""The modules whose mutants are tried, and the tests that know each best: those that kill soonest first."""

from collections.abc import Mapping

from laboratory import Tests

SPEC = "test_semantics.py", "test_doors.py", "test_second_formulation.py", "test_laws.py"
VALUES = "whole or ties or significand or reals or special or layout or gaps"


def at_edges(choice: str) -> tuple[tuple[str, ...], str]:
    """Whole numbers around the edges of vectors and tiles, by the kernels' fast routines."""
    return ("test_cpu_fast.py",), choice


def tasks(choice: str) -> tuple[tuple[str, ...], str]:
    """Arrays of several tasks."""
    return ("test_cpu_tasks.py",), choice


def walls(choice: str) -> tuple[tuple[str, ...], str]:
    """Arrays beside which nothing may be read."""
    return ("test_cpu_walls.py",), choice


def laws(choice: str) -> tuple[tuple[str, ...], str]:
    """The laws of some operators, held against the CPU kernel, that see most: in float64, too."""
    return ("test_laws.py",), f"({choice}) and cpu_kernel and (whole or special or memory)"


def algorithms(choice: str) -> tuple[tuple[str, ...], str]:
    """The laws of some of the planner's algorithms that see most."""
    return ("test_algorithms.py",), f"{choice} and (whole or bound or special or memory)"


def promises(choice: str) -> tuple[tuple[str, ...], str]:
    """What CPU kernels promise beyond the laws."""
    return ("test_cpu_kernels.py",), choice


CALLS = (("test_dispatch.py",), "")
PLANS = (("test_planner.py",), "")
FUSED = (("test_fusion.py",), "")
TILED = (("test_winograd.py",), "")
MICRO = (("test_micro_kernels.py",), "")

DEPTHWISE: Tests = (
    at_edges("depthwise or behind"),
    algorithms("depthwise"),
    tasks("columns and depthwise"),
    walls("depthwise"),
)
PIXELS: Tests = (at_edges("pixel"), algorithms("pixel"), tasks("columns and pixel"), walls("pixel"))
DIRECT: Tests = (algorithms("direct"), at_edges("infinite"), FUSED, tasks("columns and direct"), walls("direct"))
POINTWISE: Tests = (at_edges("pointwise"), algorithms("pointwise"), walls("pointwise"), PLANS)
WINOGRAD: Tests = (
    TILED,
    algorithms("winograd"),
    (("test_fusion.py",), "tiled"),
    tasks("columns and winograd"),
    walls("winograd"),
)
LINEAR: Tests = (at_edges("linear"), laws("linear"), promises("(linear or flatten) and bits"), walls("linear"))
POOL: Tests = (at_edges("pooling"), tasks("pooling"), laws("pool"), promises("pool and bits"), walls("pooling"))
ELEMENTS: Tests = (
    at_edges("elements"),
    tasks("elements"),
    (("test_bounds.py",), "chunk"),
    laws("relu or sgd"),
    promises("(relu or sgd) and bits"),
    walls("elements"),
)
SOFTMAX: Tests = (at_edges("entropy"), laws("entropy"), promises("entropy and bits"), walls("elements"))

TESTS: Mapping[str, Tests] = {
    "spec/relu.py": ((SPEC, "relu and not cpu"),),
    "spec/linear.py": ((SPEC, "(linear or flatten) and not cpu"),),
    "spec/pool.py": ((SPEC, "pool and not cpu"),),
    "spec/training.py": ((SPEC, "(cross_entropy or sgd) and not cpu"),),
    "spec/conv.py": ((SPEC, "conv2d and not cpu"),),
    "spec/window.py": ((("test_shape_theorems.py", "test_doors.py", "test_second_formulation.py"), ""),),
    "proofs_tests/proofs/problems.py": ((("test_generators.py", "test_smallest_cases.py"), ""),),
    "proofs_tests/proofs/values.py": ((("test_drawn_values.py", "test_rounding_bounds.py"), VALUES),),
    "proofs_tests/proofs/bounds.py": ((("test_rounding_bounds.py",), ""),),
    "kernels/contract.py": (CALLS, promises("refused or remember or relu")),
    # Whether certificates are current is left out: any change of a kernel's source makes them stale, equivalent or not.
    "kernels/dispatch.py": (
        CALLS,
        promises("remember or relu"),
        (("test_certificates.py",), "source_is_stale or specification_is_stale"),
        (("test_chain.py",), "backend or precision"),
        FUSED,
    ),
    "kernels/cpu/conv.py": (promises("conv2d or bias or infinite"), laws("dbias")),
    "kernels/cpu/convolution/algorithms.py": (PLANS, algorithms("whole")),
    "kernels/cpu/convolution/depthwise.py": DEPTHWISE,
    "kernels/cpu/convolution/direct.py": DIRECT,
    "kernels/cpu/convolution/direct_gradient.py": (
        algorithms("direct and dweight"),
        tasks("columns and direct"),
        walls("direct"),
    ),
    "kernels/cpu/convolution/pixel_gradient.py": PIXELS,
    "kernels/cpu/convolution/pixel_vectors.py": PIXELS,
    "kernels/cpu/convolution/planner.py": (PLANS, algorithms("whole")),
    "kernels/cpu/convolution/pointwise.py": POINTWISE,
    "kernels/cpu/convolution/shifted_rows.py": (algorithms("shifted"), tasks("columns and shifted")),
    "kernels/cpu/convolution/stencils.py": (*DEPTHWISE, *PIXELS),
    "kernels/cpu/convolution/strips.py": (*PIXELS, algorithms("direct")),
    "kernels/cpu/convolution/sweep.py": (*PIXELS, algorithms("direct"), PLANS),
    "kernels/cpu/convolution/winograd.py": (*WINOGRAD, PLANS),
    "kernels/cpu/convolution/winograd_gradient.py": (*WINOGRAD, PLANS),
    "kernels/cpu/convolution/winograd_orders.py": WINOGRAD,
    "kernels/cpu/convolution/winograd_products.py": WINOGRAD,
    "kernels/cpu/convolution/winograd_tiles.py": WINOGRAD,
    "kernels/cpu/convolution/winograd_transforms.py": WINOGRAD,
    "kernels/cpu/dot_products.py": LINEAR,
    "kernels/cpu/elementwise.py": ELEMENTS,
    "kernels/cpu/fusion.py": (FUSED,),
    "kernels/cpu/launch.py": (promises(""), (("test_laws.py",), "cut_small")),
    "kernels/cpu/linear.py": LINEAR,
    "kernels/cpu/matrix.py": LINEAR,
    "kernels/cpu/micro_kernels.py": (*LINEAR[:1], algorithms("direct"), TILED, FUSED, MICRO),
    "kernels/cpu/pool.py": POOL,
    "kernels/cpu/pool_plans.py": POOL,
    "kernels/cpu/pool_vectors.py": POOL,
    "kernels/cpu/relu.py": ELEMENTS,
    "kernels/cpu/row_vectors.py": POOL,
    "kernels/cpu/softmax.py": SOFTMAX,
    "kernels/cpu/training.py": (*SOFTMAX, *ELEMENTS),
    "kernels/cpu/unpool_vectors.py": POOL,
    "kernels/cpu/vectors.py": (at_edges(""), TILED, algorithms("direct"), MICRO),
    "kernels/cpu/winners.py": (FUSED,),
    "kernels/cpu/workers.py": (at_edges(""), promises("bits")),
    "kernels/cpu/workspace.py": (*DEPTHWISE, at_edges("linear"), algorithms("direct"), PLANS),
}
