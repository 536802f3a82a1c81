"""What the benchmarks measure is legal, the goals name it, and the page tells what was measured."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from kernelproof.proofs import Problem
from kernelproof.proofs.algorithms import planned

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def module(name: str) -> Any:
    """A file of benchmarks/, which is no package."""
    specification = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(sys.modules[name])
    return sys.modules[name]


shapes, _, page = module("shapes"), module("plots"), module("page")

CONVOLUTIONS = [*shapes.LETTERS, *shapes.EXTRA]
EVERY = [each for group in (CONVOLUTIONS, *shapes.NETWORKS.values(), *shapes.SCALING.values()) for each in group]
PROBLEMS = [each.problem(operator) for each in EVERY for operator in shapes.GRADIENTS]


def test_the_networks_have_the_layers_that_their_papers_count() -> None:
    # 1.8, 0.57 and 7.6 billion multiply-adds an image, hardly any of them in linear layers; here each kind stands once.
    repeated = {"layer1": 4, "layer2": 3, "layer3": 3, "layer4": 3, "conv7": 2,
                "depthwise 512": 5, "pointwise 512 -> 512": 5}  # fmt: skip
    for network, least, most in (("ResNet-18", 1.7, 1.9), ("MobileNetV1", 0.5, 0.6), ("VGG-11", 7.3, 7.7)):
        billions = sum(
            planned(each.problem("conv2d")).multiply_adds * repeated.get(each.name, 1) / (each.images * 1e9)
            for each in shapes.NETWORKS[network]
        )
        assert least < billions < most


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda each: f"{each.operator} {each.shapes}")
def test_sizes_are_the_operators(problem: Problem) -> None:
    options = {name: value for name, value in problem.options.items() if name != "groups"}
    window = shapes.Window(problem.shapes["weight"][2:], **options)
    x = problem.shapes["x"]
    assert problem.output[2:] == (window.p(x), window.q(x))
    assert x[1] == problem.shapes["weight"][1] * problem.options["groups"]
    assert shapes.flops(problem) == 2 * planned(problem).multiply_adds


def test_goals_name_what_is_measured() -> None:
    measured = {(each.name, operator) for each in CONVOLUTIONS for operator in shapes.GRADIENTS}
    measured |= {(each.name, each.operator) for each in shapes.OTHERS}
    assert {(name, operator) for name, operator, _ in shapes.GOALS} <= measured
    for group in (CONVOLUTIONS, *shapes.NETWORKS.values()):
        assert len({each.name for each in group}) == len(group)


def timing(seconds: float) -> dict[str, float]:
    return {"seconds": seconds, "least": seconds, "spread": 0.1}


def row(group: str, **more: Any) -> dict[str, Any]:
    ours = {"strict": {"algorithm": "direct", **timing(2e-3)}, "fast": {"algorithm": "winograd", **timing(1e-3)}}
    return {
        "group": group, "name": "A", "text": "1x1x8x8 -> 1, 3x3", "operator": "conv2d", "threads": 1, "flops": 10**9,
        "traffic": 10**6, "ours": ours, "peers": {"torch": timing(3e-3), "jax": timing(1.5e-3)},
        "goals": {"strict": 0.95, "fast": 1.5}, **more,
    }  # fmt: skip


def test_the_page_tells_what_was_measured(tmp_path: Path) -> None:
    machine = dict.fromkeys(("date", "processor", "architecture", "lanes", "cores", "python"), "?")
    data = {
        "command": "make bench",
        "machine": {**machine, "threads": 1, "versions": {"numpy": "2"}, "settings": {"A": "0"}},
        "load": {"before": 0.0, "after": 0.1}, "samples": {"taken": 9, "rejected": 1, "kept_late": 0},
        "wrong": ["conv2d of Z: nonsense"], "peak": {"1": 1e12}, "bandwidth": {"1": 1e10},
        "convolutions": [row("shapes")], "others": [row("others")], "networks": [row("")],
        "startup": {"seconds": {"import": 0.2}, "goals": {"import": 0.3}},
        "memory": [{"name": "A", "text": "", "bytes": {"torch": 2**20}}],
        "scaling": [row("scaling images", scaled=1), row("scaling images", scaled=2)],
    }  # fmt: skip
    page.write_page(data, tmp_path)
    text = (tmp_path / "cpu.md").read_text()
    assert "**Wrong and not timed:** conv2d of Z: nonsense" in text
    assert "1 of 1 goals are met" in text
    assert "Below 0.95 of the fastest peer: A forward strict 0.75." in text
    assert "| jax | 1.500 | 0.75 of 0.95 | 1.50 of 1.50 |" in text
    for figure in re.findall(r"\]\((.*?\.svg)\)", text):
        assert (tmp_path / figure).read_text().endswith("</svg>\n")
