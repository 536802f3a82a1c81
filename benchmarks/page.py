"""What was measured as a page: `python benchmarks/page.py docs/cpu.json` writes docs/cpu.md and its figures again."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import plots

from kernelproof.models.host import write_whole

PASSES = {"conv2d": "forward", "conv2d.dx": "dx", "conv2d.dweight": "dweight"}
FLOOR = 0.95

INTRODUCTION = """# The CPU kernels beside others

Written by `{command}` on {date}: {processor} ({architecture}, vectors of {lanes} float32), {threads} of {cores} cores
for everybody, Python {python}, {versions}. Load average {before:.2f} before, {after:.2f} after.

Every kernel was held to its rounding bound on the problem that it was then timed on: its first and its last image, or
what those two add to a sum, against the specification in float64. Ratios are the fastest peer's time over ours, medians
of interleaved samples in one process: above 1 ours is faster. Ours includes packing and transforming the weights in
every call. Of {taken:,} samples {rejected:,} were taken again because their threads had waited for a core, and
{kept_late:,} kept although all their tries had. A multiply-add loop in the registers reaches {peak:.0f} GFLOP/s, a copy
in memory {bandwidth:.0f} GB/s.

torch's page faults are tuned away, for all: {settings}.
{wrong}"""


def fastest(row: Mapping[str, Any]) -> tuple[str, float]:
    """Who of the peers was fastest, and its seconds."""
    peers = {name: each["seconds"] for name, each in row["peers"].items()}
    return min(peers.items(), key=lambda each: each[1])


def ratios(row: Mapping[str, Any]) -> dict[str, float]:
    """The fastest peer's time over ours, by precision; where fast does nothing else it is strict's."""
    _, seconds = fastest(row)
    return {precision: seconds / each["seconds"] for precision, each in row["ours"].items()}


def write_page(data: Mapping[str, Any], folder: Path) -> None:
    """Write cpu.md and images/cpu-*.svg."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    parts = [_introduction(data), *_convolutions(data, folder), *_others(data), *_networks(data), *_startup(data),
             *_memory(data), *_scaling(data, folder)]  # fmt: skip
    write_whole(folder / "cpu.md", ("\n\n".join(part.strip() for part in parts) + "\n").encode())


def _introduction(data: Mapping[str, Any]) -> str:
    machine, threads = data["machine"], str(data["machine"]["threads"])
    wrong = "".join(f"\n\n**Wrong and not timed:** {each}" for each in data["wrong"])
    return INTRODUCTION.format(
        command=data["command"], **data["load"], **data["samples"], wrong=wrong,
        peak=data["peak"][threads] / 1e9, bandwidth=data["bandwidth"][threads] / 1e9,
        **{key: machine[key] for key in ("date", "processor", "architecture", "lanes", "threads", "cores", "python")},
        versions=", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        settings=" ".join(f"`{name}={value}`" for name, value in machine["settings"].items()),
    )  # fmt: skip


def _figure(folder: Path, name: str, alternative: str, svg: str) -> str:
    write_whole(folder / "images" / f"cpu-{name}.svg", svg.encode())
    return f"![{alternative}](images/cpu-{name}.svg)"


def _convolutions(data: Mapping[str, Any], folder: Path) -> Iterator[str]:
    rows = data.get("convolutions", [])
    if not rows:
        return
    yield f"## Convolutions\n\n{_verdict(rows)}"
    for group in dict.fromkeys(row["group"] for row in rows):
        of_group = [row for row in rows if row["group"] == group]
        bars = [
            (
                f"{row['name']} {row['text'].removesuffix(' depthwise')} {PASSES[row['operator']]}",
                ratios(row),
                row["goals"],
            )
            for row in of_group
        ]
        yield "" if group == "shapes" else f"### {group}"
        yield _figure(folder, group.lower(), f"Ratios to the fastest peer, {group}", plots.ratios(bars))
        yield _compared(of_group, data)
    yield from _missed(rows, data)
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        who = {f"ours {precision}": each["seconds"] for precision, each in row["ours"].items()}
        for name, seconds in ({"fastest peer": fastest(row)[1]} | who).items():
            points.setdefault(name, []).append((row["flops"] / row["traffic"], row["flops"] / seconds / 1e9))
    threads = str(data["machine"]["threads"])
    peak, bandwidth = data["peak"][threads] / 1e9, data["bandwidth"][threads] / 1e9
    yield "### Roofline"
    yield (
        "The roof is the measured peak or, where that takes longer, moving every array once. Operations are those of "
        "the equation, whatever an algorithm saves of them: Winograd's may be above the roof."
    )
    yield _figure(folder, "roofline", "Roofline with the measured peak", plots.roofline(points, peak, bandwidth))
    yield f"### Every time\n\n<details><summary>Milliseconds of everybody</summary>\n\n{_times(rows)}\n\n</details>"


def _verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many goals are met, and what is slower than the floor."""
    judged = [
        (row, precision, ratio, row["goals"][precision])
        for row in rows for precision, ratio in ratios(row).items()
    ]  # fmt: skip
    goals = [(ratio, goal) for *_, ratio, goal in judged if goal != FLOOR]
    below = [
        f"{row['name']} {PASSES.get(row['operator'], row['operator'])} {precision} {ratio:.2f}"
        for row, precision, ratio, _ in judged
        if ratio < FLOOR
    ]
    text = f"{sum(ratio >= goal for ratio, goal in goals)} of {len(goals)} goals are met. "
    if not below:
        return text + f"Nothing is below {FLOOR} of the fastest peer."
    return text + f"Below {FLOOR} of the fastest peer: {', '.join(below)}."


PRODUCTS = {"winograd F(2x2, 3x3)": 2.25, "winograd F(4x4, 3x3)": 4.0}
"""How many times fewer products than the equation an algorithm has."""

REASONS = {
    "direct": "pixels and sums are copied and turned between the products, which were 92 to 97 % of a call (forward "
    "and dx of L, O, Q on Zen 3)",
    "pointwise": "both operands are packed between the products",
    "depthwise": "few operations for each float: most of it is moving arrays",
    "pixel vectors": "sums are short, and loads at every shift lie across two lines of the cache",
    "winograd": "tiles are transformed on the way in and out",
    "cross_entropy": "of few rows, a call's way through Python and to the kernel is most of it",
    "linear": "operands are turned to panels between the products, and there are few tasks",
    "max_pool2d": "few operations for each float: most of it is moving arrays",
}
"""What is between a kernel and its limit, by how the name of its algorithm or operator begins."""


def _missed(rows: Sequence[Mapping[str, Any]], data: Mapping[str, Any]) -> Iterator[str]:
    """A line for each goal that is missed, with what the machine would allow; then the reasons."""
    threads, lines = str(data["machine"]["threads"]), []
    for row in rows:
        for precision, ratio in ratios(row).items():
            if ratio >= (goal := row["goals"][precision]):
                continue
            name = row["ours"][precision].get("algorithm", row["operator"])
            at_peak = row["flops"] / PRODUCTS.get(name, 1) / data["peak"][threads]
            moved = row["traffic"] / data["bandwidth"][threads]
            limit = fastest(row)[1] / max(at_peak, moved)
            of_what = f"{limit:.2f} ({'peak' if at_peak > moved else 'bandwidth'})"
            called = f"{row['name']} {PASSES.get(row['operator'], row['operator'])} {precision}"
            lines.append([called, f"{ratio:.2f}", f"{goal:.2f}", of_what, name])
    if not lines:
        return
    names = {line[-1] for line in lines}
    reasons = [
        f"- {begin}: {text}"
        for begin, text in REASONS.items()
        if any(name.startswith(begin) for name in names)
    ]  # fmt: skip
    yield (
        "### Goals that are missed\n\nThe limit is the ratio of a kernel that did its algorithm's products at the "
        "measured peak and nothing else or, where that takes longer, moved every array once at the speed of a copy in "
        "memory (small ones stay in the caches)."
    )
    yield _table(["", "came", "goal", "limit", "algorithm"], lines)
    yield "What is between:\n\n" + "\n".join(reasons)


def _compared(rows: Sequence[Mapping[str, Any]], data: Mapping[str, Any]) -> str:
    """A line for each problem: who was fastest, our ratios beside their goals, what computed it."""
    threads = str(data["machine"]["threads"])
    lines = []
    for row in rows:
        who, seconds = fastest(row)
        came = ratios(row)
        cells = [f"{row['name']}: {row['text']}", PASSES.get(row["operator"], f"`{row['operator']}`")]
        cells += [who, f"{1e3 * seconds:.3f}"]
        for precision in ("strict", "fast"):
            kept = precision in came
            cells.append(f"{came[precision]:.2f} of {row['goals'][precision]:.2f}" if kept else "")
        if any("algorithm" in each for each in row["ours"].values()):
            cells.append(", ".join(dict.fromkeys(each["algorithm"] for each in row["ours"].values())))
            best = min(each["seconds"] for each in row["ours"].values())
            roof = min(data["peak"][threads], row["flops"] / row["traffic"] * data["bandwidth"][threads])
            cells.append(f"{row['flops'] / best / roof:.0%}")
        lines.append(cells)
    head = ["problem", "", "fastest peer", "its ms", "strict of goal", "fast of goal"]
    head += ["algorithm", "of the roof"] if len(lines[0]) > len(head) else []
    return _table(head, lines)


def _times(rows: Sequence[Mapping[str, Any]]) -> str:
    """Milliseconds of everybody, with the width of the middle half of the samples."""
    peers = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    lines = []
    for row in rows:
        everybody = {f"ours {name}": each for name, each in row["ours"].items()} | row["peers"]
        cells = (everybody.get(name) for name in ("ours strict", "ours fast", *peers))
        times = [f"{1e3 * each['seconds']:.3f} ±{50 * each['spread']:.0f} %" if each else "" for each in cells]
        label = f"{row['name']} {row['text']} {PASSES.get(row['operator'], row['operator'])}".strip()
        lines.append([label + f", threads {row['threads']}" * (row["group"] == "scaling threads"), *times])
    return _table(["", "ours strict", "ours fast", *peers], lines)


def _others(data: Mapping[str, Any]) -> Iterator[str]:
    if rows := data.get("others"):
        yield f"## Other operators\n\n{_verdict(rows)}"
        yield _compared(rows, data)
        yield from _missed(rows, data)
        yield f"<details><summary>Milliseconds of everybody</summary>\n\n{_times(rows)}\n\n</details>"


def _networks(data: Mapping[str, Any]) -> Iterator[str]:
    if not (rows := data.get("networks")):
        return
    yield "## CNN2\n\nMilliseconds. A step shuffles the batch, and ends with the loss and the accuracy known."
    peers = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    lines = []
    for row in rows:
        ours = row["ours"]
        best = min(each["seconds"] for each in ours.values())
        cells = [f"{row['name']}, {row['text']}", *(f"{1e3 * each['seconds']:.3f}" for each in ours.values())]
        for name in peers:
            if name not in row["peers"]:
                cells.append("")
                continue
            seconds = row["peers"][name]["seconds"]
            goal = f" of {row['goals'][name]:.1f}" if name in row["goals"] else ""
            cells.append(f"{1e3 * seconds:.3f} (x{seconds / best:.2f}{goal})")
        lines.append(cells)
    yield _table(["", *(f"ours {name}" for name in rows[0]["ours"]), *peers], lines)
    yield "In brackets how many times ours is faster, of the goal where there is one."


def _startup(data: Mapping[str, Any]) -> Iterator[str]:
    if found := data.get("startup"):
        yield (
            "## Start-up\n\nIn fresh processes. CNN2's first call and first step count what is imported, compiled and "
            "loaded for them. Dispatch is a convolution of 1x4x6x6, 3x3, from Python."
        )
        goals = {name: _span(each) for name, each in found["goals"].items()}
        yield _table(
            ["", "time", "goal"],
            ([name, _span(each), goals.get(name, "")] for name, each in found["seconds"].items()),
        )


def _span(seconds: float) -> str:
    return (
        f"{seconds:.2f} s"
        if seconds >= 0.1
        else f"{1e3 * seconds:.2f} ms"
        if seconds >= 1e-3
        else f"{1e6 * seconds:.1f} us"
    )


def _memory(data: Mapping[str, Any]) -> Iterator[str]:
    if rows := data.get("memory"):
        yield (
            "## Peak memory\n\nMiB by which a process grows beyond its inputs, results included: a training step of "
            "CNN2 on 64 images, and forward, dx and dweight of each kind of ResNet-18's convolutions on 8."
        )
        who = list(rows[0]["bytes"])
        yield _table(
            ["", *who],
            (
                [f"{row['name']} {row['text']}".strip(), *(f"{each / 2**20:.1f}" for each in row["bytes"].values())]
                for row in rows
            ),
        )


def _scaling(data: Mapping[str, Any], folder: Path) -> Iterator[str]:
    rows = data.get("scaling", [])
    if not rows:
        return
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        axis = row["group"].removeprefix("scaling ")
        everybody = {f"ours {name}": each for name, each in row["ours"].items()} | row["peers"]
        title = axis if axis != "threads" else f"threads, {row['name']}"
        for name, each in everybody.items():
            point = row["scaled"], row["flops"] / each["seconds"] / 1e9
            panels.setdefault(title, {}).setdefault(name, []).append(point)
    yield "## Scaling\n\nForward of 8x64x28x28 -> 64, 3x3, with one of its sizes at a time; then of A and D by threads."
    yield _figure(folder, "scaling", "GFLOP/s by batch, channels, size, kernel and threads", plots.scaling(panels))
    yield f"<details><summary>Milliseconds of everybody</summary>\n\n{_times(rows)}\n\n</details>"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *("---:" if each else "---" for each in head[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


if __name__ == "__main__":
    file = Path(sys.argv[1])
    write_page(json.loads(file.read_text()), file.parent)
