"""Hypothesis profiles, chosen with `--hypothesis-profile dev | ci | nightly`; ci unless told otherwise."""

import importlib.util

import hypothesis

from kernelproof.proofs.verify import PROFILES

for name, examples in PROFILES.items():
    # The same problems on every run of ci, so that a red test stays red; nightly looks for new ones.
    hypothesis.settings.register_profile(
        name, max_examples=examples, deadline=None, derandomize=name != "nightly", print_blob=True
    )
hypothesis.settings.load_profile("ci")

collect_ignore = [] if importlib.util.find_spec("torch") else ["test_against_torch.py"]
"""PyTorch is no dependency: where it is missing the comparison with it does not exist."""
