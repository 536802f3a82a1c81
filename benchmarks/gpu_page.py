"""docs/cuda.md and its figures, from what benchmarks/gpu.py measured: needs no GPU.

python benchmarks/gpu_page.py
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import plots
from gpu_shapes import MEMORY, PRODUCTS, SHAPES, TENSOR

from kernelproof.models.host import write_whole

DOCS = Path(__file__).parents[1] / "docs"
PRECISIONS = ("strict", "fast", "tf32")

GOALS = {
    "3x3": {"forward": (4.5, 7.5), "dx": (5.0, 5.0), "dweight": (8.0, 8.0)},
    "1x1": {"forward": (6.0, 6.0), "dx": (6.0, 6.0), "dweight": (6.0, 6.0)},
}
"""How many times faster than cuDNN's strict float32 we want to be, in strict and in fast; elsewhere: not slower."""

REASONS = """\
Where cuDNN's float32 is nearest: it has Winograd for 3x3 filters on small images, which does with less than half of the
products what we do with six bfloat16 ones each. From 5 channels on, an input gradient through a stride is
one convolution for each phase of the stride, each with its own launches. First layers of 3 channels fill tensor cores
once all taps are gathered as channels of their own, in forward and in the weight gradient, which looking the taps up
limits.
Goals are missed for two reasons. A product of float32 accuracy takes six bfloat16 products, or three float16 ones, and
tensor cores reach 77 to 92% of their peak in the kernels whose operands are laid out, 62 to 75% in the others (Nsight
Compute, 2026-11-20): what loads and splits x, and what stores y, shares the multiprocessor with what multiplies. Of the
first row's 50 us of products in *fast*, 36 are left without stores, and 30 without either. And around it stand
launches of 2 to 10 us: operands split or laid out, shares added, special values looked for; in *fast* also each image's
greatest value."""


NOT_COMPILED = """\
torch.compile was not measured in this run. On 2026-11-20, in one graph, it took 440 us in float32 and 357 in TF32 for
the step of 256, 5471 and 4273 for that of 4096, 136 and 100 for forward of 256, 1488 and 1197 for forward of 4096."""


def goals_of(row: Mapping[str, Any]) -> dict[str, float]:
    """By precision."""
    taps = next((taps for taps in GOALS if row["shape"].endswith(taps)), "")
    return dict(zip(("strict", "fast"), GOALS.get(taps, {}).get(row["pass"], (1.0, 1.0)), strict=True))


def ratios_of(row: Mapping[str, Any]) -> dict[str, float]:
    """cuDNN's strict float32 in NCHW over ours, by precision."""
    return {precision: row["us"]["cuDNN fp32"] / row["us"][precision] for precision in ("strict", "fast")}


def figures(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Bars of ratios, and a roofline."""
    bars = [(f"{row['shape'].removesuffix(' depthwise')} {row['pass']}", ratios_of(row), goals_of(row)) for row in rows]
    shapes = {shape.text: shape for shape in SHAPES}
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        shape = shapes[row["shape"]]
        for name, key in (("cuDNN fp32", "cuDNN fp32"), ("ours strict", "strict"), ("ours fast", "fast")):
            rate = shape.operations / row["us"][key] / 1e3
            points.setdefault(name, []).append((shape.operations / shape.traffic, rate))
    roof = plots.roofline(points, TENSOR / PRODUCTS["strict"] / 1e9, MEMORY / 1e9)
    for name, words, svg in (
        ("ratios", "Ratios to cuDNN in float32", plots.ratios(bars)), ("roofline", "Roofline of six products", roof),
    ):  # fmt: skip
        write_whole(DOCS / "images" / f"cuda-{name}.svg", svg.encode())
        yield f"![{words}](images/cuda-{name}.svg)"


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many goals are met, and what is slower than cuDNN's float32, in strict or in fast."""
    judged = [(ratio, goals_of(row)[name]) for row in rows for name, ratio in ratios_of(row).items()]
    wanted = [(ratio, goal) for ratio, goal in judged if goal > 1]
    below = [
        f"{row['shape']} {row['pass']} in {name} {ratio:.2f}"
        for row in rows
        for name, ratio in ratios_of(row).items()
        if ratio < 1
    ]
    least = min(ratio for ratio, _ in judged)
    met = sum(ratio >= goal for ratio, goal in wanted)
    slower = ", ".join(below) or f"none of {len(rows)} rows in strict or fast, the least ratio is {least:.2f}"
    return f"{met} of {len(wanted)} goals are met. Slower than cuDNN's float32: {slower}."


def table(result: dict[str, Any]) -> str:
    """The page for the docs."""
    versions = ", ".join(f"{name} {result[name]}" for name in ("driver", "torch", "cuDNN", "numba-cuda", "numpy"))
    lines = [
        "# CUDA kernels, measured",
        "",
        f"{result['GPU']}, {result['date']}, {versions}. Measured by `python benchmarks/gpu.py`, which says how.",
        "",
        "Microseconds a call, with all that is launched for it. Errors are the greatest |error| / sum of |x||w|",
        "against float64. *strict* is float32 accuracy over the full range, *fast* the same within each image's range.",
        "The ratio is cuDNN's strict float32 in NCHW over ours: above 1 we win. *Roofline* is the least time that",
        "memory, or six bf16 products for each product, allow, over ours.",
        "",
        verdict(result["convolutions"]),
        "",
        *REASONS.split("\n"),
        "",
        *figures(result["convolutions"]),
        "",
        "| shape | pass | strict | fast | tf32 | cuDNN fp32, NHWC | tf32, NHWC | ratio | error, cuDNN | roofline |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["convolutions"]:
        us, error = row["us"], row["error"]
        cells = (
            f"{row['network']} {row['shape']}",
            row["pass"],
            *(f"{us[precision]:.1f}" for precision in PRECISIONS),
            *(f"{us[f'cuDNN {name}']:.1f}, {us[f'cuDNN {name} NHWC']:.1f}" for name in ("fp32", "tf32")),
            f"{us['cuDNN fp32'] / us['strict']:.2f}",
            f"{error['strict']:.0e}, {error['cuDNN fp32']:.0e}",
            f"{row['roofline']:.0%}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    if "training" in result:
        lines += [
            "",
            "One step of CNN2 (1x28x28, SGD with momentum), microseconds; errors are the worst relative error of",
        ]
        lines += ["a parameter's gradient against float64, where one maximum that falls otherwise shows.", ""]
        for row in result["training"]:
            names = "; ".join(f"{key} {value:.0f}" for key, value in row["us"].items())
            errors = "; ".join(f"{key} {value:.0e}" for key, value in row["error"].items())
            lines.append(f"- batch {row['batch']}: {names}. Errors: {errors}.")
    if "training" in result and not any("compile" in name for row in result["training"] for name in row["us"]):
        lines += ["", *NOT_COMPILED.split("\n")]
    if "inference" in result:
        lines += [
            "",
            "CNN2 forward, microseconds one after the other on the stream, and in brackets until the call returned.",
            "Ours is `chain.compile('cuda').forward` as it is called, each time on another batch; PyTorch's graphs",
            "replay on one. Errors are relative, of the logits.",
            "",
        ]
        for row in result["inference"]:
            names = "; ".join(
                f"{key} {value:.0f}" + (f" ({row['host'][key]:.0f})" if key in row["host"] else "")
                for key, value in row["us"].items()
            )
            errors = "; ".join(f"{key} {value:.0e}" for key, value in row["error"].items())
            lines.append(f"- batch {row['batch']}: {names}. Errors: {errors}.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_whole(DOCS / "cuda.md", table(json.loads((DOCS / "cuda.json").read_text())).encode())
