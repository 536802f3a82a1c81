"""The demonstration's page: one HTML file, nothing loaded from elsewhere, light and dark."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from kernelproof.proofs.report import versions

if TYPE_CHECKING:
    from .demo import Outcome

SAMPLES = 24
"""Held-out digits shown: all that were misread first, then others."""


def page(outcome: "Outcome") -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kernelproof", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    results = sorted(outcome.report.results, key=lambda result: result.operator)
    return environment.get_template("page.html").render(
        outcome=outcome,
        diagram=outcome.chain.diagram("svg"),
        curve=curve([(step.epoch, step.loss, step.accuracy) for step in outcome.steps]),
        samples=samples(outcome),
        operators=[(operator, list(laws)) for operator, laws in groupby(results, lambda result: result.operator)],
        versions=versions(),
    )


def curve(steps: Sequence[tuple[int, float, float]], width: int = 640, height: int = 220) -> dict[str, Any]:
    """Loss and accuracy of each epoch as polylines of an SVG of this size, the loss scaled to its largest."""
    epochs = [list(of_epoch) for _, of_epoch in groupby(steps, lambda step: step[0])]
    loss = [float(np.mean([step[1] for step in of_epoch])) for of_epoch in epochs]
    accuracy = [float(np.mean([step[2] for step in of_epoch])) for of_epoch in epochs]
    highest, across = max(loss), max(1, len(epochs) - 1)

    def line(values: Sequence[float], top: float) -> str:
        return " ".join(f"{i * width / across:.1f},{height * (1 - v / top):.1f}" for i, v in enumerate(values))

    return {
        "width": width, "height": height, "loss": line(loss, highest), "accuracy": line(accuracy, 1.0),
        "highest": highest, "epochs": len(epochs), "last_loss": loss[-1], "last_accuracy": accuracy[-1],
    }  # fmt: skip


def samples(outcome: "Outcome") -> list[dict[str, Any]]:
    """Digits with their label and what was read: pixels as (column, row, ink)."""
    wrong = outcome.evaluation.predictions != outcome.held_out.labels
    chosen = np.argsort(~wrong, kind="stable")[:SAMPLES]
    return [
        {
            "ink": [
                (w, h, f"{ink:.2f}") for (h, w), ink in np.ndenumerate(outcome.held_out.images[which, 0]) if ink > 0
            ],
            "label": int(outcome.held_out.labels[which]),
            "read": int(outcome.evaluation.predictions[which]),
        }
        for which in chosen
    ]
