"""How strong a run is: the museum's faults that the same laws and problems find, and those that it does not."""

import json

from kernelproof import spec, verify
from kernelproof.proofs import Report
from kernelproof.proofs.museum import MUSEUM
from kernelproof.proofs.render import facts


def linear(x, weight, bias=None):
    return spec.linear(x, weight, bias)


def dweight(*args, **options):
    return spec.conv2d_dweight(*args, **options)


def test_the_report_says_how_many_of_how_many():
    report = verify(linear, "linear", level="L1", examples=100, museum=True)
    found, planted = report.museum["linear"]
    assert planted == sum(mutant.operator == "linear" and not mutant.checked for mutant in MUSEUM.values())
    assert 0 < found <= planted
    assert Report.from_json(json.loads(json.dumps(report.as_json()))).museum == report.museum
    assert facts(report)["the museum's faults that it finds"] == f"linear {found} of {planted}"


def test_what_the_declaration_leaves_out_is_not_found():
    (few, _), (most, _) = (
        verify(dweight, "conv2d.dweight", level="L1", examples=50, supports=limits, museum=True).museum[
            "conv2d.dweight"
        ]
        for limits in ("groups == 1", None)
    )
    assert few < most


def test_nothing_is_said_unasked():
    report = verify(linear, "linear", level="L1", examples=1)
    assert report.museum == {}
    assert not any("museum" in fact for fact in facts(report))
