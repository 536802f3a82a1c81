"""`kernelproof plan`: which algorithm computes a convolution on this CPU, why, and what the others would cost.

Or which kernels a GPU would launch for it (cuda_plan.py).
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import numpy as np
from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from kernelproof.kernels import workspace_limit as at_most
from kernelproof.kernels.contract import Precision
from kernelproof.kernels.cpu.convolution import planner
from kernelproof.kernels.cpu.launch import threads
from kernelproof.kernels.cpu.micro_kernels import PIXELS, VECTORS
from kernelproof.kernels.cpu.vectors import LANES
from kernelproof.kernels.tuning import measured
from kernelproof.proofs import Problem
from kernelproof.proofs.algorithms import planned
from kernelproof.proofs.at_scale import worst_error
from kernelproof.proofs.judging import LawBroken
from kernelproof.proofs.report import count
from kernelproof.spec import OPERATORS, ParameterError, conv2d
from kernelproof.spec.window import whole_shape

EXAMPLES = {"x": "32x64x56x56", "weight": "64x64x3x3", "stride": "2x1", "dilation": "2x1", "padding": "0x1x0x1"}


def plan(
    operator: str,
    *,
    x: str,
    weight: str,
    stride: str = "1",
    padding: str = "0",
    dilation: str = "1",
    groups: int = 1,
    dtype: Literal["float32", "float64"] = "float32",
    backend: Literal["cpu", "cuda"] = "cpu",
    gpu: Literal["H200", "A100", "A10", "L4", "T4"] | None = None,
    precision: Precision = "strict",
    workspace_limit: int | None = None,
    measure: bool = False,
    json: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
) -> int:
    """Show which algorithm computes a convolution or its gradient on this CPU, why, and what the others would cost.

    With --backend cuda: which kernels are launched for it on a GPU, and the bytes of workspace that they take.

    Exit status: 0 told, 1 an algorithm is refuted, 2 wrong usage.

    Parameters
    ----------
    operator
        conv2d, conv2d.dx or conv2d.dweight.
    x
        Images x channels x height x width, such as 32x64x56x56.
    weight
        Filters x channels of a group x height x width, such as 64x64x3x3.
    stride
        One number, or height x width, such as 2x1.
    padding
        One number, or height x width, or top x bottom x left x right.
    dilation
        One number, or height x width.
    groups
        Groups of channels that do not see each other.
    dtype
        The arrays' scalar type.
    backend
        Where it is computed. For cuda no GPU is needed.
    gpu
        Whose kernels --backend cuda tells. Left out: those of an H200.
    precision
        What rounding is allowed.
    workspace_limit
        Bytes of workspace that may be taken. Left out: as many as are needed.
    measure
        Hold each algorithm of the CPU that may be taken to its rounding bound, then time it.
    json
        Write the plan to this file; - for standard output.
    """
    from .command_line import PROVEN, REFUTED, check_writable, errors, screen, write_json

    check_writable("plan", json)
    to_stdout = json is not None and str(json) == "-"
    given = {"stride": stride, "padding": padding, "dilation": dilation}
    options = {name: _option(name, text) for name, text in given.items()} | {"groups": groups}
    problem = _problem(operator, _sizes("x", x, 4), _sizes("weight", weight, 4), options, dtype)
    if gpu is not None and backend != "cuda":
        raise ParameterError(
            "plan", f"--gpu {gpu} with --backend {backend}", "--backend cuda", "Add it, or leave --gpu out."
        )
    if backend == "cuda":
        from .cuda_plan import launched, shown

        if measure:
            raise ParameterError("plan", "--measure with --backend cuda", "one of them", "Leave --measure out.")
        with at_most(workspace_limit):
            found = launched(problem, precision, gpu or "H200")
        shown(errors if to_stdout else screen, found)
        if json is not None:
            write_json(found, json)
        return PROVEN
    with at_most(workspace_limit):
        decision = planner.decide(planned(problem), precision)
        try:
            seconds = _measured(problem, decision) if measure else {}
        except LawBroken as wrong:
            errors.print(str(wrong), markup=False, style="red")
            return REFUTED
        found = _found(problem, precision, decision, seconds)
    _show(errors if to_stdout else screen, found)
    if json is not None:
        write_json(found, json)
    return PROVEN


def _sizes(name: str, text: str, *counts: int) -> tuple[int, ...]:
    """`32x64x56x56` as numbers, as many as one of the counts; raises ParameterError."""
    parts = text.split("x")
    if len(parts) not in counts or not all(part.isdecimal() for part in parts):
        needed = f"{' or '.join(map(str, counts))} whole numbers with x between"
        raise ParameterError("plan", f"--{name} {text}", needed, f"Write for example --{name} {EXAMPLES[name]}.")
    return tuple(map(int, parts))


def _option(name: str, text: str) -> Any:
    """One number, one per axis, or for padding one per side; raises ParameterError."""
    match _sizes(name, text, *((1, 2, 4) if name == "padding" else (1, 2))):
        case (number,):
            return number
        case (top, bottom, left, right):
            return (top, bottom), (left, right)
        case by_axis:
            return by_axis


def _problem(
    operator: str, x: tuple[int, ...], weight: tuple[int, ...], options: Mapping[str, Any], dtype: str
) -> Problem:
    """The problem with these options; raises what the specification's door does."""
    of_planner = {row.operator for row in planner.ALGORITHMS}
    names = [name for name in OPERATORS if name.replace(".", "_") in of_planner]
    if operator not in names:
        raise ParameterError("plan", f"operator {operator!r}", " or ".join(names), "Correct the name.")
    # A door looks at shapes and types alone: no memory is taken.
    shapes = {"x": whole_shape("plan", "--x", x), "weight": whole_shape("plan", "--weight", weight)}
    arrays = (SimpleNamespace(shape=shape, dtype=np.dtype(dtype)) for shape in shapes.values())
    window = conv2d.door(*arrays, **options).values[3]
    output = (x[0], weight[0], window.p(x), window.q(x))
    geometry = {"stride": window.stride, "padding": window.padding, "dilation": window.dilation}
    return Problem(operator, shapes, {**options, **geometry}, output, "real", dtype=dtype)


def _measured(problem: Problem, decision: planner.Decision) -> dict[str, float]:
    """Seconds of each algorithm that may be taken, once it is within its bound; raises LawBroken."""
    perform, arrays = OPERATORS[problem.operator].perform, problem.arrays()
    calls: dict[str, Callable[[], Any]] = {}
    for row in _rows(problem):
        if row.name in decision.costs:
            kernel = functools.partial(perform, row.run)
            worst_error(kernel, replace(problem, precision=row.rounds_as))
            calls[row.name] = functools.partial(problem.call, kernel, arrays)
    return measured(calls)


def _rows(problem: Problem) -> list[planner.Algorithm]:
    return [row for row in planner.ALGORITHMS if row.operator == planned(problem).operator]


def _found(
    problem: Problem, precision: Precision, decision: planner.Decision, seconds: Mapping[str, float]
) -> dict[str, Any]:
    asked = planned(problem)
    algorithms = {
        row.name: {
            "multiply_adds": decision.costs.get(row.name),
            "milliseconds": 1e3 * seconds[row.name] if row.name in seconds else None,
            "workspace": row.workspace(asked) if row.name in decision.costs else None,
            "reason": row.reason,
            "refused": decision.refused.get(row.name),
            "rounds_as": row.rounds_as,
        }
        for row in _rows(problem)
    }
    return {
        "operator": problem.operator, "shapes": dict(problem.shapes), "options": dict(problem.options),
        "dtype": problem.dtype, "precision": precision, "multiply_adds": asked.multiply_adds, "threads": threads(),
        "register_tile": {"pixels": PIXELS, "vectors": VECTORS, "lanes": LANES},
        "taken": decision.taken.name, "algorithms": algorithms,
    }  # fmt: skip


def _show(console: Console, found: Mapping[str, Any]) -> None:
    """The problem, those that may be taken by their cost, then why: of the taken, of the others, of the refused."""
    tile, taken = found["register_tile"], found["algorithms"][found["taken"]]
    x, weight = ("x".join(map(str, shape)) for shape in found["shapes"].values())
    options = ", ".join(f"{name} {value}" for name, value in found["options"].items())
    console.print(f"{found['operator']} of x {x} and weight {weight}: {options}", markup=False)
    console.print(
        f"{found['multiply_adds']:,} multiply-adds in {found['dtype']}, {found['precision']}, on "
        f"{count(found['threads'], 'thread')}; a register tile is {tile['pixels']} pixels x {tile['vectors']} vectors "
        f"of {tile['lanes']} float32"
    )
    is_measured = taken["milliseconds"] is not None
    columns = ("estimated cost", "times the taken", "workspace", *["measured ms"] * is_measured)
    table = Table("algorithm", *(Column(name, justify="right") for name in columns))
    by_cost = sorted(found["algorithms"].items(), key=lambda each: each[1]["multiply_adds"] or math.inf)
    for name, each in by_cost:
        if not each["refused"]:
            cost = each["multiply_adds"]
            # Of an empty batch all cost nothing.
            times = cost / taken["multiply_adds"] if cost else 1.0
            numbers = [f"{cost:,.0f}", f"{times:.2f}", f"{each['workspace']:,}"]
            numbers += [f"{each['milliseconds']:.3f}"] if is_measured else []
            table.add_row(name, *numbers, style="green" if name == found["taken"] else "")
    console.print(table)
    console.print("Cost in multiply-adds at the micro-kernel's full speed, workspace in bytes at most.")
    for name, each in by_cost:
        verdict = ", taken" if name == found["taken"] else ", refused" if each["refused"] else ""
        console.print(f"[bold]{name}[/]{verdict}: {escape(each['refused'] or each['reason'])}")
