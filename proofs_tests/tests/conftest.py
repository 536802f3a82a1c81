"""Hypothesis profiles, chosen with `--hypothesis-profile dev | ci | nightly`; ci unless told otherwise."""

import hypothesis

from kernelproof.proofs.verify import PROFILES

for name, examples in PROFILES.items():
    # The same problems on every run of ci, so that a red test stays red; nightly looks for new ones.
    hypothesis.settings.register_profile(
        name, max_examples=examples, deadline=None, derandomize=name != "nightly", print_blob=True
    )
hypothesis.settings.load_profile("ci")
