"""The page's figures as SVG: bars of ratios, a roofline, lines of scaling."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

COLOURS = {
    "ours strict": "#0072b2", "ours fast": "#d55e00", "torch": "#7f7f7f", "torch channels-last": "#b0a030",
    "onnxruntime": "#009e73", "jax": "#cc79a7", "numpy": "#56b4e9", "fastest peer": "#7f7f7f",
    "cuDNN fp32": "#7f7f7f",
}  # fmt: skip
"""Told apart by most who do not see all colours: Okabe and Ito, Color Universal Design."""

STYLE = """<style>
text { font: 11px system-ui, sans-serif; fill: #24292f }
.line { stroke: #8c959f; stroke-width: 1; fill: none } .faint { stroke-opacity: .3 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } }
</style>"""


def _svg(width: float, height: float, parts: Iterable[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}">\n{STYLE}\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _line(points: Sequence[tuple[float, float]], style: str = "", css: str = "line") -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{css}" points="{path}" {style}/>'


def _bar(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def _legend(x: float, y: float, names: Iterable[str]) -> list[str]:
    parts = []
    for name in names:
        parts.append(_bar(x, y - 8, 10, 8, COLOURS[name]))
        parts.append(_text(x + 14, y, name))
        x += 30 + 6.2 * len(name)
    return parts


def ratios(bars: Sequence[tuple[str, Mapping[str, float], Mapping[str, float]]]) -> str:
    """A line for each problem: how many times faster than the fastest peer ours are, by precision, and the goals."""
    left, right, step, top = 270, 60, 19, 34
    most = max((value for _, values, goals in bars for value in (*values.values(), *goals.values())), default=1.0)
    scale = (900 - left - right) / max(most, 1.2)
    bottom = top + step * len(bars)
    parts = _legend(left, 14, ("ours strict", "ours fast"))
    parts.append(_text(left + 190, 14, "| goal; 1 is the fastest peer"))
    for tick in range(int(most) + 1):
        x = left + scale * tick
        parts.append(_line([(x, top - 6), (x, bottom)], css="line" if tick == 1 else "line faint"))
        parts.append(_text(x, bottom + 14, str(tick), "middle"))
    for which, (name, values, goals) in enumerate(bars):
        y = top + step * which
        parts.append(_text(left - 8, y + 11, name, "end"))
        height = 14 / len(values)
        for place, (precision, value) in enumerate(values.items()):
            above, colour = y + 1 + height * place, COLOURS[f"ours {precision}"]
            parts.append(_bar(left, above, scale * value, height - 1, colour))
            goal = left + scale * goals[precision]
            parts.append(_line([(goal, above - 1), (goal, above + height)], 'style="stroke-width: 2"'))
            if place == len(values) - 1:
                parts.append(_text(left + scale * max(*values.values(), *goals.values()) + 6, y + 11, f"{value:.2f}"))
    return _svg(900, bottom + 22, parts)


class _Axes:
    """A rectangle with logarithmic axes: `at(x, y)` is where a point stands in it."""

    def __init__(
        self, box: tuple[float, float, float, float], xs: tuple[float, float], ys: tuple[float, float]
    ) -> None:
        self.box, self.xs, self.ys = box, xs, ys

    def at(self, x: float, y: float) -> tuple[float, float]:
        left, top, width, height = self.box
        across, up = (
            (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
            for value, (low, high) in ((x, self.xs), (y, self.ys))
        )
        return left + width * across, top + height * (1 - up)

    def drawn(self, xs: Iterable[float], ys: Iterable[float], title: str, x_title: str, y_title: str) -> list[str]:
        left, top, width, height = self.box
        parts = [_text(left, top - 8, f"{title}{y_title}"), _text(left + width, top + height + 28, x_title, "end")]
        for x in xs:
            parts.append(_line([self.at(x, self.ys[0]), self.at(x, self.ys[1])], css="line faint"))
            parts.append(_text(self.at(x, self.ys[0])[0], top + height + 14, f"{x:g}", "middle"))
        for y in ys:
            parts.append(_line([self.at(self.xs[0], y), self.at(self.xs[1], y)], css="line faint"))
            parts.append(_text(left - 5, self.at(self.xs[0], y)[1] + 4, f"{y:g}", "end"))
        return parts


def roofline(points: Mapping[str, Sequence[tuple[float, float]]], peak: float, bandwidth: float) -> str:
    """GFLOP/s over flops per byte, beneath what multiplying and moving allow."""
    xs = [x for each in points.values() for x, _ in each]
    ys = [y for each in points.values() for _, y in each]
    xs_range, ys_range = (min(xs) / 1.5, max(xs) * 1.5), (min(ys) / 1.5, max(*ys, peak) * 1.5)
    axes = _Axes((60, 46, 800, 380), xs_range, ys_range)
    parts = _legend(60, 14, points)
    parts += axes.drawn(_powers(xs_range, 4), _powers(ys_range, 2), "", "flops per byte", "GFLOP/s")
    bend = min(max(peak / bandwidth, xs_range[0]), xs_range[1])
    start = max(xs_range[0], ys_range[0] / bandwidth)
    roof = [(start, min(peak, start * bandwidth)), (bend, min(peak, bend * bandwidth)), (xs_range[1], peak)]
    parts.append(_line([axes.at(*each) for each in roof], 'style="stroke-width: 2"'))
    parts.append(_text(*axes.at(bend, peak * 1.08), f"{peak:.0f} GFLOP/s, {bandwidth:.0f} GB/s measured"))
    for name, each in points.items():
        for point in each:
            x, y = axes.at(*point)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{COLOURS[name]}" fill-opacity=".8"/>')
    return _svg(880, 470, parts)


def scaling(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> str:
    """A panel for each size: GFLOP/s of everybody as it grows."""
    parts = _legend(50, 14, dict.fromkeys(name for lines in panels.values() for name in lines))
    for which, (axis, lines) in enumerate(panels.items()):
        xs = sorted({x for points in lines.values() for x, _ in points})
        ys = [y for points in lines.values() for _, y in points]
        box = (50 + 440 * (which % 2), 60 + 250 * (which // 2), 370, 180)
        ys_range = (min(ys) / 1.2, max(ys) * 1.2)
        axes = _Axes(box, (xs[0] / 1.1, xs[-1] * 1.1), ys_range)
        parts += axes.drawn(xs, _powers(ys_range, 4), "", axis, "GFLOP/s")
        for name, points in lines.items():
            parts.append(
                _line([axes.at(*each) for each in sorted(points)], f'style="stroke: {COLOURS[name]}; stroke-width: 2"')
            )
    return _svg(900, 60 + 250 * math.ceil(len(panels) / 2), parts)


def _powers(bounds: tuple[float, float], base: int) -> list[float]:
    """The powers of the base within the bounds."""
    first, last = (math.log(each, base) for each in bounds)
    return [float(base**power) for power in range(math.ceil(first), math.floor(last) + 1)]
