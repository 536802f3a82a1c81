"""How laws and usual tests do on the same real bugs: run `python benchmarks/museum.py`, it writes docs/museum.md.

Each mutant of the museum is held to the laws until one breaks, and to three usual tests: a typical shape compared
within 1e-2, the same within the tolerances that `torch.testing.assert_close` has for float32, and the ONNX node tests
of its operator with their own tolerances. Correct kernels of other kinds are held to all laws: none may be accused.
"""

import copy
import datetime
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases

from kernelproof.proofs import Problem, subject_of, verify
from kernelproof.proofs.hold import hold
from kernelproof.proofs.jobs import kept
from kernelproof.proofs.laws import Law, Observation
from kernelproof.proofs.museum import CONTROLS, MUSEUM, WAITING, Mutant
from kernelproof.proofs.verify import LEVELS, laws_of
from kernelproof.spec import find

PAGE = Path(__file__).parents[1] / "docs" / "museum.md"

WINDOW = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
TYPICAL: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, Any], tuple[int, ...]]] = {
    "conv2d": (
        {"x": (2, 16, 16, 16), "weight": (32, 16, 3, 3), "bias": (32,)},
        {**WINDOW, "groups": 1},
        (2, 32, 16, 16),
    ),
    "max_pool2d": (
        {"x": (2, 16, 16, 16)},
        {"kernel_size": (2, 2), "stride": (2, 2), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "ceil_mode": False},
        (2, 16, 8, 8),
    ),
    "linear": ({"x": (8, 64), "weight": (32, 64), "bias": (32,)}, {}, (8, 32)),
    "relu": ({"x": (2, 16, 16, 16)}, {}, (2, 16, 16, 16)),
    "cross_entropy": ({"logits": (8, 10), "target": (8,)}, {}, ()),
    "sgd": ({"parameter": (64,), "gradient": (64,), "velocity": (64,)}, {"learning_rate": 0.1, "momentum": 0.9}, (64,)),
}
"""The shape that a test of the operator is usually written with."""


REPOSITORIES = {
    "pytorch": "pytorch/pytorch", "onnxruntime": "microsoft/onnxruntime", "onnx": "onnx/onnx", "ncnn": "Tencent/ncnn",
    "tensorflow": "tensorflow/tensorflow", "Theano": "Theano/Theano", "modular": "modular/modular",
    "opencv": "opencv/opencv", "OpenCV": "opencv/opencv", "openvino": "openvinotoolkit/openvino", "flax": "google/flax",
    "tinygrad": "tinygrad/tinygrad", "XNNPACK": "google/XNNPACK", "ComputeLibrary": "ARM-software/ComputeLibrary",
    "onnx2tf": "PINTO0309/onnx2tf", "executorch": "pytorch/executorch", "mlx": "ml-explore/mlx",
    "onnxscript": "microsoft/onnxscript", "tt-metal": "tenstorrent/tt-metal",
}  # fmt: skip
"""Where a source's issues are, for those that the museum calls by a short name."""


def linked(source: str) -> str:
    """The source in Markdown: each report by its address, where it has one."""
    repository = ""

    def link(found: re.Match[str]) -> str:
        nonlocal repository
        name, number = found.groups()
        repository = REPOSITORIES.get(name, name if "/" in name else "") if name else repository
        return f"[{found[0]}](https://github.com/{repository}/issues/{number})" if repository else found[0]

    text = re.sub(r"([\w./-]*)#(\d+)", link, source)
    return re.sub(r"CVE-\d+-\d+", lambda found: f"[{found[0]}](https://nvd.nist.gov/vuln/detail/{found[0]})", text)


@dataclass(frozen=True)
class Kill:
    """What found a mutant: the law, how many problems it took, how long."""

    law: Law
    problems: int
    seconds: float


def killed_by_laws(mutant: Mutant, seed: int = 0) -> Kill | None:
    """The first law that breaks, in the order in which `verify` holds them."""
    subject = replace(subject_of(mutant.kernel, mutant.operator), checked=mutant.checked)
    started, problems, found = time.perf_counter(), 0, 0.0

    def counted(law: Law, problem: Problem) -> Observation:
        nonlocal problems, found
        if found == 0.0:
            problems += 1
        try:
            return check(law, problem)
        except Exception:
            found = found or time.perf_counter() - started
            raise

    # Bad input is what a mutant may die of: it is kept apart.
    with kept(subject, 120.0 if mutant.checked else None) as check:
        for law in laws_of(mutant.operator, ["L9"] if mutant.checked else LEVELS):
            if hold(law, subject, mutant.operator, 100, seed, counted).failure:
                return Kill(law, problems, found)
    return None


def close(kernel: Callable[..., Any], operator: str, call: Callable[..., Any], rtol: float, atol: float) -> bool:
    """Whether the kernel passes a test of the usual kind; one that raises fails it."""
    right = call(find(operator))
    try:
        came = call(kernel)
    except Exception:
        return False
    pairs = zip(_tuple(came), _tuple(right), strict=False)
    return all(a.shape == b.shape and np.allclose(a, b, rtol, atol, equal_nan=True) for a, b in pairs)


def _tuple(result: Any) -> tuple[np.ndarray, ...]:
    return tuple(map(np.asarray, result)) if isinstance(result, tuple) else (np.asarray(result),)


def passes_typical(mutant: Mutant, rtol: float, atol: float) -> bool:
    """The typical shape with normally distributed values."""
    shapes, options, output = TYPICAL[mutant.operator.partition(".")[0]]
    problem, generator = Problem(mutant.operator, shapes, options, output, "real"), np.random.default_rng(0)
    arrays = {name: generator.standard_normal(shape, np.float32) for name, shape in problem.array_shapes.items()}
    if "target" in arrays:
        arrays["target"] = generator.integers(0, shapes["logits"][1], shapes["target"])
    return close(mutant.kernel, mutant.operator, lambda function: problem.call(function, arrays), rtol, atol)


def node_tests(op_type: str) -> Iterator[tuple[NodeProto, list[Any], float, float]]:
    """ONNX's own tests of a single node of this type: node, inputs, tolerances."""
    for case in collect_testcases(None):
        nodes = case.model.graph.node if case.model is not None else ()
        if len(nodes) == 1 and nodes[0].op_type == op_type:
            inputs = [
                each if isinstance(each, np.ndarray) else numpy_helper.to_array(each) for each in case.data_sets[0][0]
            ]
            yield nodes[0], inputs, case.rtol, case.atol


def node_call(operator: str, node: NodeProto, inputs: list[Any]) -> Callable[..., Any] | None:
    """The test as a call of the operator; None if it is not one (another rank, dtype or attribute)."""
    attributes = {each.name: list(each.ints) or each.i for each in node.attribute}
    floats = all(each.dtype == np.float32 for each in inputs)
    if operator in ("conv2d", "max_pool2d") and floats and inputs[0].ndim == 4 and not attributes.get("storage_order"):
        if any(each.name == "auto_pad" for each in node.attribute):
            return None
        top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
        options = {
            "stride": tuple(attributes.get("strides", (1, 1))),
            "padding": ((top, bottom), (left, right)),
            "dilation": tuple(attributes.get("dilations", (1, 1))),
        }
        if operator == "conv2d":
            bias = inputs[2] if len(inputs) > 2 else None
            return lambda function: function(*inputs[:2], bias, **options, groups=attributes.get("group") or 1)
        options |= {"ceil_mode": bool(attributes.get("ceil_mode")), "return_indices": len(node.output) > 1}
        return lambda function: function(inputs[0], tuple(attributes["kernel_shape"]), **options)
    if (
        operator == "linear"
        and floats
        and attributes.get("transB")
        and not attributes.get("transA")
        and len(attributes) == 1
    ):
        bias = inputs[2].reshape(-1) if len(inputs) > 2 else None
        return lambda function: function(inputs[0], inputs[1], bias)
    if operator == "relu" and floats:
        return lambda function: function(inputs[0])
    if operator == "cross_entropy" and len(inputs) == 2 and inputs[0].ndim == 2 and "ignore_index" not in attributes:
        if any(each.name == "reduction" and each.s != b"mean" for each in node.attribute) or len(node.output) > 1:
            return None
        return lambda function: function(inputs[0], inputs[1].astype(np.int64))
    return None


ONNX_TYPE = {
    "conv2d": "Conv",
    "max_pool2d": "MaxPool",
    "linear": "Gemm",
    "relu": "Relu",
    "cross_entropy": "SoftmaxCrossEntropyLoss",
}


def passes_node_tests(mutant: Mutant, tests: dict[str, list[Any]]) -> bool | None:
    """All node tests of its operator; None where ONNX has none, as for every gradient."""
    runs = tests.get(mutant.operator)
    if not runs:
        return None
    return all(close(mutant.kernel, mutant.operator, call, rtol, atol) for call, rtol, atol in runs)


def main() -> None:
    """Hold every mutant to everything and write the table."""
    warnings.simplefilter("ignore", RuntimeWarning)
    tests = {
        operator: [
            (call, rtol, atol)
            for node, inputs, rtol, atol in node_tests(op_type)
            if (call := node_call(operator, node, inputs)) is not None
        ]
        for operator, op_type in ONNX_TYPE.items()
    }
    rows, killed = [], [0, 0, 0, 0]
    for name, mutant in MUSEUM.items():
        # Each test has a mutant of its own: some remember what they were called with.
        laws, loose, tight, onnx = (replace(mutant, kernel=copy.deepcopy(mutant.kernel)) for _ in range(4))
        kill = killed_by_laws(laws)
        usual = [not passes_typical(loose, 1e-2, 1e-2), not passes_typical(tight, 1.3e-6, 1e-5)]
        nodes = passes_node_tests(onnx, tests)
        for which, found in enumerate((kill is not None, *usual, nodes is False)):
            killed[which] += found
        law = "survives" if kill is None else f"{kill.law.level} {kill.law.name.replace('_', ' ')}"
        effort = "" if kill is None else f"{kill.problems} | {kill.seconds:.2f}"
        marks = " | ".join("found" if found else "" for found in usual)
        rows.append(
            f"| {name} | `{mutant.operator}` | {linked(mutant.source)} | {law} | {effort} | {marks} | {_mark(nodes)} |"
        )
        print(rows[-1])
    accused = []
    for name, each in CONTROLS.items():
        report = verify(each.kernel, each.operator, precision=each.precision, examples=100)
        accused += [name] if report.verdict != "proven" else []
        print(name, report.verdict)
    waiting = [f"| {linked(each.source)} | {each.needs} | {each.fault} |" for each in WAITING]
    total = len(MUSEUM)
    counts = ", ".join(f"{operator} {len(runs)}" for operator, runs in tests.items())
    PAGE.write_text(
        "# The museum, by test\n\n"
        f"Written by `python benchmarks/museum.py` on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}. Every mutant is "
        "a clean kernel with one fault from a public report planted; `kernelproof.proofs.museum` has them with trigger "
        "and fault.\n\n"
        f"Of {total} mutants the laws find **{killed[0]}**; one typical shape within 1e-2 finds {killed[1]}, within "
        f"float32's usual tolerances (1.3e-6, 1e-5) {killed[2]}; the ONNX node tests find {killed[3]} "
        f"(tests of a single node that apply: {counts}; none for gradients).\n\n"
        f"Of {len(CONTROLS)} correct kernels that compute in other ways (sums by pairs, in blocks, reordered, in "
        f"float64, by fused multiply-add, by im2col, by FFT in its class), the laws accuse **{len(accused)}**"
        f"{': ' + ', '.join(accused) if accused else ''}.\n\n"
        "| mutant | operator | source | law that finds it | problems | seconds | 1e-2 | 1.3e-6 | ONNX node tests |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
        + "\n".join(rows) + "\n\n## Waiting\n\nReports of operators, or options, that are not here yet.\n\n"
        "| source | waits for | fault |\n|---|---|---|\n" + "\n".join(waiting) + "\n"
    )  # fmt: skip


def _mark(passes: bool | None) -> str:
    return "none" if passes is None else "" if passes else "found"


if __name__ == "__main__":
    main()
