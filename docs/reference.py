"""Writes docs/laws.md and docs/operators.md from the docstrings: run `python docs/reference.py` after changing one."""

import inspect
from pathlib import Path

from kernelproof.proofs import LAWS
from kernelproof.proofs.coverage import predicates
from kernelproof.proofs.shape_algebra import THEOREMS
from kernelproof.spec import OPERATORS

HERE = Path(__file__).parent

LEVEL_MEANS = {
    "L1": "Exact: whole numbers so small that float sums are exact in any order.",
    "L2": "Full significand: tells float32 from TF32, bfloat16 and half precision.",
    "L3": "Rounding: every element within its own derived bound, `gamma(n + 1) * (sum |x||w| + |b|)`.",
    "L4": "Special values: NaN, infinities, zeros, subnormals.",
    "L5": "Gradients: the adjoint identity and the exact derivative, no finite differences.",
    "L6": "Metamorphic: what holds a kernel against itself.",
    "L7": "Determinism: the same call, the same bits, in any order of calls, on any threads.",
    "L8": "Memory: every element written, nothing read or written beside an array.",
    "L9": "Bad input: refused with a typed error, never a signal. Held for this project's backends, and for other "
    'kernels where it is asked for with `level="L9"`: their author may check before calling them.',
}

CLASS_MEANS = {
    "fp64, fp32": "All bits of the dtype, as a kernel without `--precision` promises; or 24 of float64's 53.",
    "f16x3, 3xtf32": "Operands as sums of parts in fewer bits: 22 and 21 together. Sums in float32.",
    "tf32, fp16, bf16": "Operands cut to 11, 11 and 8 bits. Sums in float32.",
    "winograd2, winograd4": "3x3 filters of stride 1 in tiles of 2x2 or 4x4, sums in the dtype. winograd2 keeps 16 "
    "bits of whole numbers; winograd4, with thirds in its transforms, none.",
    "fft": "Convolutions and their gradients by Fourier's transforms in the dtype. No whole number survives exactly.",
}


def laws() -> str:
    """The page of laws: theorems of the shape arithmetic, laws by level, what problems are counted for."""
    parts = [
        "# The laws\n\nWritten by `python docs/reference.py` from the docstrings. `kernelproof verify` holds a kernel "
        "to every law of its operator; `--level` picks some. Equal means equal as numbers, NaN where the specification "
        "has NaN.\n",
        "## L0: the shape arithmetic, proved by z3 for every size\n",
        *(f"- **{name.replace('_', ' ')}**: {theorem.statement}" for name, theorem in THEOREMS.items()),
    ]
    for level, meaning in LEVEL_MEANS.items():
        parts.append(f"\n## {level}\n\n{meaning}\n")
        for law in LAWS.values():
            if law.level == level:
                operators = ", ".join(f"`{name}`" for name in OPERATORS if name in law.holds_for)
                parts.append(
                    f"- **{law.name.replace('_', ' ')}**: {law.statement} Values: {law.family}. For {operators}."
                )
    parts.append(
        "\n## L10 and L11\n\nWhat holds the laws and the specification themselves. L10: every real bug of [the museum]"
        "(museum.md) is found and no correct kernel is accused, and [generic mutants](mutants.md) of kernels, "
        "specifications and generators are killed by the tests. L11: the specification agrees with literal nested "
        "loops, and with PyTorch and ONNX Runtime where they mean the same "
        "(`proofs_tests/tests/test_second_formulation.py`, "
        "`test_against_torch.py`, `test_against_onnxruntime.py`).\n"
    )
    parts.append(
        "\n## Precision classes\n\nWith `--precision` a kernel declares what it may round. Numbers are drawn to fit "
        "the class, and L3's bound is derived for it: for Winograd and FFT from what their transforms do, relative to "
        "a tile and to a whole image. Classes that no whole number survives are held to no law of L1, L2, L5 and L6. "
        "NaN and infinities stand where the specification has them in all classes: a transform spreads them, so a "
        "kernel looks for them.\n"
    )
    parts += [f"- **{names}**: {meaning}" for names, meaning in CLASS_MEANS.items()]
    parts.append(
        "\n## What the problems hit\n\nEvery run counts, for each operator, the problems that have one of these "
        "properties, and asks for those that chance left out.\n"
    )
    for op in ("conv2d", "max_pool2d"):
        parts.append(f"- `{op}`: {'; '.join(predicates(op))}.")
    return "\n".join(parts) + "\n"


def operators() -> str:
    """The page of operators: each docstring under its signature."""
    parts = ["# The operators\n\nWritten by `python docs/reference.py` from the docstrings of `kernelproof.spec`.\n"]
    for name, operator in OPERATORS.items():
        arguments = ", ".join(
            ("*, " if first_option(operator, each) else "") + str(each.replace(annotation=each.empty))
            for each in inspect.signature(operator).parameters.values()
        )
        parts.append(f"## {name}\n\n```python\n{operator.__name__}({arguments})\n```\n\n{inspect.getdoc(operator)}\n")
    return "\n".join(parts)


def first_option(operator: object, parameter: inspect.Parameter) -> bool:
    """Whether the parameter is the first that is passed by name."""
    options = [each for each in inspect.signature(operator).parameters.values() if each.kind is each.KEYWORD_ONLY]  # type: ignore[arg-type]
    return options[:1] == [parameter]


PAGES = {"laws.md": laws, "operators.md": operators}

if __name__ == "__main__":
    for page, text in PAGES.items():
        (HERE / page).write_text(text())
