"""`kernelproof plan --backend cuda`: which kernels a GPU launches for a convolution, and the workspace they take."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from kernelproof import kernels
from kernelproof.kernels.contract import Precision
from kernelproof.proofs import Problem
from kernelproof.spec import OPERATORS


def launched(problem: Problem, precision: Precision, gpu: str = "H200") -> dict[str, Any]:
    """The launches on a GPU in their order; raises what the operator does, UnsupportedError."""
    operator = OPERATORS[problem.operator]
    kernel = kernels.backend("cuda").at(precision).kernel(operator)
    from kernelproof.kernels.cuda.host.dry import dry

    shapes = problem.array_shapes
    rest = [problem.shapes[name.removesuffix("_shape")] for name in problem.parameters if name.endswith("_shape")]
    came = dry(operator, kernel, [*shapes.values()], problem.dtype, *rest, gpu=gpu, **problem.options)
    return {
        "operator": problem.operator, "shapes": dict(problem.shapes), "options": dict(problem.options),
        "dtype": problem.dtype, "precision": precision, "backend": "cuda", "gpu": gpu, "workspace": came.workspace,
        "launches": [
            {"kernel": each.name, "blocks": each.blocks, "threads": each.threads, "shared": each.shared}
            for each in came.launches
        ],
    }  # fmt: skip


def shown(console: Console, found: Mapping[str, Any]) -> None:
    """The problem, its launches, its workspace."""
    x, weight = ("x".join(map(str, shape)) for shape in found["shapes"].values())
    options = ", ".join(f"{name} {value}" for name, value in found["options"].items())
    console.print(f"{found['operator']} of x {x} and weight {weight}: {options}", markup=False)
    console.print(
        f"in {found['dtype']}, {found['precision']}, on the {found['gpu']}: {found['workspace']:,} bytes of workspace"
    )
    table = Table("kernel", *(Column(name, justify="right") for name in ("blocks", "threads", "shared bytes")))
    for each in found["launches"]:
        across, down = each["blocks"]
        blocks = f"{across:,} x {down:,}" if down > 1 else f"{across:,}"
        table.add_row(each["kernel"], blocks, str(each["threads"]), f"{each['shared']:,}")
    console.print(table)
