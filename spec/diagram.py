"""A chain drawn: as text while it is wired, as a table, as Mermaid and as SVG. All read the flat steps alone."""

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from .layers import Linear, SlidingLayer
from .shape_algebra import Dimension, Domain, ReceptiveField, Shape, Size, shape_text, size_at

if TYPE_CHECKING:
    from .chain import Step


def text(start: Shape, steps: Sequence["Step"], misfit: tuple[str, str, str] | None = None) -> str:
    """One line per layer with its output shape; the misfit's name, layer and reason come last."""
    rows = [("input", "", shape_text(start))]
    rows += [(step.name, repr(step.layer), shape_text(step.output)) for step in steps]
    return columns([*rows, misfit] if misfit else rows)


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows of cells as aligned lines; the columns in `right` are numbers, aligned at their ends."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def summary(start: Shape, steps: Sequence["Step"]) -> str:
    """Layer, output shape, parameters, multiply-adds for one image, receptive field `height x width`; then the totals.

    A Linear depends on every position of the feature map, and so on all the inputs that the map depends on.
    """
    rows = [
        ("layer", "", "output", "parameters", "multiply-adds", "receptive field"),
        ("input", "", shape_text(start), "", "", ""),
    ]
    fields, seen = [ReceptiveField(), ReceptiveField()], "1 x 1"
    feature_map = start[2:]
    counts, products = [], []
    for name, layer, _, output in steps:
        if isinstance(layer, SlidingLayer):
            fields = [field >> ReceptiveField.of(layer.window, axis) for axis, field in enumerate(fields)]
            seen = " x ".join(str(field.size) for field in fields)
            feature_map = output[2:]
        if isinstance(layer, Linear):
            seen = " x ".join(_of_map(field, size) for field, size in zip(fields, feature_map, strict=False)) or "all"
        counts.append(sum(math.prod(shape) for shape in layer.parameter_shapes.values()))
        products.append(layer.multiply_adds(output))
        rows.append((name, repr(layer), shape_text(output), _number(counts[-1]), _number(products[-1]), seen))
    rows.append(("total", "", "", _number(sum(counts)), _sum(products), ""))
    return columns(rows, right=(3, 4, 5))


def _of_map(field: ReceptiveField, size: Size) -> str:
    """Inputs that a map of `size` positions depends on, from its first position's first to its last one's last."""
    return str((size - 1) * field.jump + field.size) if isinstance(size, int) else "all"


def _number(size: Size) -> str:
    return f"{size:,}" if isinstance(size, int) else str(size)


def _sum(sizes: Sequence[Size]) -> str:
    """A sum of numbers and unknown sizes, equal products gathered: `288*h*w + 4608*(h//2)*(w//2) + 31,360`."""
    times: dict[tuple, int] = {}
    for size in sizes:
        factors, count = ((), size) if isinstance(size, int) else (size.factors, size.times)
        times[factors] = times.get(factors, 0) + count
    known = times.pop((), 0)
    terms = [str(Dimension(factors, count)) for factors, count in times.items()]
    return " + ".join(terms + [f"{known:,}"] * (known > 0 or not terms))


def mermaid(start: Shape, steps: Sequence["Step"]) -> str:
    """A Mermaid flowchart: layers as boxes, shapes on the arrows."""
    lines = ["flowchart TD", '    input(["input"])']
    before, shape = "input", start
    for name, layer, _, output in steps:
        box = name.replace(".", "_")
        lines.append(f'    {box}["{name}<br/>{layer!r}"]')
        lines.append(f'    {before} -- "{shape_text(shape)}" --> {box}')
        before, shape = box, output
    lines += ['    output(["output"])', f'    {before} -- "{shape_text(shape)}" --> output']
    return "\n".join(lines)


ROW, TOP, FUNNEL, LEFT = 52, 34, 220, 24
COLOURS = {"conv": "#4c78a8", "relu": "#e6a23c", "pool": "#59a14f", "flatten": "#8a8f98", "fc": "#b0609b"}
STYLE = """
    text { font: 13px ui-sans-serif, system-ui, sans-serif; fill: #1c2330; }
    .name { font-weight: 600; }
    .what, .shape { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 12px; }
    .shape { fill: #5a6475; }
    .edge { stroke: #5a6475; stroke-width: 1.5; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e8ebf0; } .shape { fill: #a4adbb; } .edge { stroke: #a4adbb; }
    }
"""


def svg(start: Shape, steps: Sequence["Step"], admits: Domain) -> str:
    """A self-contained SVG: each layer a funnel from its input to its output, as wide as the logarithm of their values.

    Sizes left open are drawn at the smallest that the chain admits. Colours follow the reader's light or dark scheme.
    """
    sizes = admits.example()
    shapes = [start, *(step.output for step in steps)]
    values = [math.prod(size_at(size, sizes) for size in shape[1:]) for shape in shapes]
    most = math.log2(1 + max(values))
    halves = [max(3.0, FUNNEL / 2 * math.log2(1 + count) / most) for count in values]
    names = LEFT + FUNNEL + 24
    layers = names + 8 * max([5, *(len(step.name) for step in steps)]) + 16
    width = layers + 7.4 * max([len(repr(step.layer)) for step in steps] + [len(shape_text(s)) for s in shapes]) + LEFT
    height = TOP + ROW * len(steps) + TOP
    body = [_line(0, halves[0], names, layers, "input", shape_text(start))]
    for row, step in enumerate(steps):
        body.append(_funnel(row, step, halves[row], halves[row + 1], names, layers))
        body.append(_line(row + 1, halves[row + 1], names, layers, "", shape_text(step.output)))
    title = escape(f"{shape_text(start)} to {shape_text(shapes[-1])}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" '
        f'height="{height}" role="img" aria-label="Chain from {title}">\n  <title>Chain from {title}</title>\n'
        f"  <style>{STYLE}  </style>\n" + "\n".join(body) + "\n</svg>\n"
    )


def _line(row: int, half: float, names: float, layers: float, name: str, shape: str) -> str:
    """A tensor: a rule as wide as it holds values, and its shape."""
    y, middle = TOP + ROW * row, LEFT + FUNNEL / 2
    label = f'\n  <text class="name" x="{names}" y="{y + 4}">{name}</text>' if name else ""
    return (
        f'  <line class="edge" x1="{middle - half:.1f}" y1="{y}" x2="{middle + half:.1f}" y2="{y}"/>{label}\n'
        f'  <text class="shape" x="{layers:.0f}" y="{y + 4}">{escape(shape)}</text>'
    )


def _funnel(row: int, step: "Step", above: float, below: float, names: float, layers: float) -> str:
    """A layer: a trapezium from the tensor above to the one below, its name and its record."""
    top, bottom, middle = TOP + ROW * row + 3, TOP + ROW * (row + 1) - 3, LEFT + FUNNEL / 2
    corners = [(middle - above, top), (middle + above, top), (middle + below, bottom), (middle - below, bottom)]
    points = " ".join(f"{x:.1f},{y}" for x, y in corners)
    y = (top + bottom) / 2 + 4
    return (
        f'  <polygon points="{points}" fill="{COLOURS[step.layer.kind]}" fill-opacity="0.85"/>\n'
        f'  <text class="name" x="{names}" y="{y}">{escape(step.name)}</text>\n'
        f'  <text class="what" x="{layers:.0f}" y="{y}">{escape(repr(step.layer))}</text>'
    )
