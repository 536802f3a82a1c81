"""A chain drawn: the table's numbers are counted, the pictures are well-formed and complete."""

import itertools
import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest

from kernelproof.spec import Conv2d, Flatten, Linear, MaxPool2d, ReLU, SpecChain
from kernelproof.spec.shape_algebra import size_at

LAYERS = (
    Conv2d(2, 4, 3, stride=(1, 2), padding=1, groups=2), ReLU(), MaxPool2d(2, padding=((0, 1), (0, 0)), ceil_mode=True),
    Flatten(), Linear(32, 10),
)  # fmt: skip
CHAINS = {
    "numbers": SpecChain(*LAYERS, input="n 2 8 8"),
    "names": SpecChain(*LAYERS, input="n 2 h w"),
    "nested": SpecChain(SpecChain(*LAYERS[:3], input="n 2 h w"), *LAYERS[3:], input="n 2 8 8"),
    "rows": SpecChain(Linear(3, 4), ReLU(), input="n 3"),
    "empty": SpecChain(input="n 2 h w"),
}


class Counted:
    """A scalar that counts the multiplications it takes part in."""

    products = 0

    def __mul__(self, other: Any) -> "Counted":
        Counted.products += 1
        return self

    def __add__(self, other: Any) -> "Counted":
        return self

    __radd__, __rmul__ = __add__, __mul__


@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[4], ReLU()])
def test_multiply_adds_are_the_products_that_the_specification_forms(layer):
    chain = SpecChain(layer, input="n 32" if isinstance(layer, Linear) else "n 2 8 8")
    if isinstance(layer, ReLU):
        assert layer.multiply_adds(chain.output) == 0
        return
    shape = tuple(size_at(size, {"n": 1}) for size in chain.input)
    parameters = {key: np.full(shape, Counted()) for key, shape in chain.parameter_shapes.items()}
    Counted.products = 0
    chain.forward(parameters, np.full(shape, Counted()))
    assert layer.multiply_adds(chain.output) == Counted.products


def test_the_summary_is_a_table_of_every_layer():
    chain = SpecChain(Conv2d(1, 8, 3), ReLU(), MaxPool2d(2), Flatten(), Linear(72, 10), input="n 1 9 8")
    assert chain.summary().splitlines() == [
        "layer                      output        parameters  multiply-adds  receptive field",
        "input                      (n, 1, 9, 8)",
        "conv1     Conv2d(1, 8, 3)  (n, 8, 7, 6)          80          3,024            3 x 3",
        "relu1     ReLU()           (n, 8, 7, 6)           0              0            3 x 3",
        "pool1     MaxPool2d(2)     (n, 8, 3, 3)           0              0            4 x 4",
        "flatten1  Flatten()        (n, 72)                0              0            4 x 4",
        "fc1       Linear(72, 10)   (n, 10)              730            720            8 x 8",
        "total                                           810          3,744",
    ]


def test_open_sizes_stand_in_the_summary_as_formulas():
    lines = CHAINS["names"].summary().splitlines()
    assert lines[-1].split(maxsplit=2)[2] == "36*h*((w + 1)//2) + 320"


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_svg_is_well_formed_self_contained_and_shows_every_layer_and_shape(chain):
    text = chain.diagram("svg")
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    shown = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for step in chain.steps:
        assert {step.name, repr(step.layer)} <= set(shown)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polygon"))) == len(chain.steps)
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"(href|src|url\()", text)


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_mermaid_is_one_path_through_every_layer_with_the_shapes_on_its_arrows(chain):
    lines = chain.diagram().splitlines()
    assert lines[0] == "flowchart TD"
    arrows = [re.fullmatch(r' +(\w+) -- "(.+)" --> (\w+)', line) for line in lines if "-->" in line]
    path = [(arrow[1], arrow[3]) for arrow in arrows if arrow]
    boxes = ["input", *(step.name.replace(".", "_") for step in chain.steps), "output"]
    assert path == list(itertools.pairwise(boxes))
    assert all(re.search(rf"^ +{box}[\[(]", "\n".join(lines), re.MULTILINE) for box in boxes)
