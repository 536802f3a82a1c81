"""1,797 real handwritten digits, small enough to travel with the package. Licence and source: DIGITS.md."""

from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from beartype import beartype
from jaxtyping import Float32, Int64, jaxtyped

from kernelproof.spec.errors import ParameterError
from kernelproof.spec.window import whole

FULL_INK = 16
"""Ink in the file is counted 0 .. 16: the black pixels of a 4x4 block of the original scan."""


@jaxtyped(typechecker=beartype)
@dataclass(frozen=True)
class Digits:
    """Images `[n,1,8,8]`, 0 paper to 1 ink, and the digit `[n]` that each shows."""

    images: Float32[np.ndarray, "n 1 8 8"]
    labels: Int64[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, held_out: int = 360, seed: int = 0) -> tuple["Digits", "Digits"]:
        """Train and held-out digits, drawn by seed: the same seed gives the same split. Raises ParameterError."""
        if not 0 < whole("Digits.split", "held_out", held_out, 1) < len(self):
            raise ParameterError(
                "Digits.split", f"held_out={held_out}", f"1 to {len(self) - 1} of {len(self)}", "Hold out fewer."
            )
        order = np.random.default_rng(seed).permutation(len(self))
        train, test = order[held_out:], order[:held_out]
        return Digits(self.images[train], self.labels[train]), Digits(self.images[test], self.labels[test])


def load_digits() -> Digits:
    """The bundled digits in the order of their source.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998, doi 10.24432/C50P49.
    """
    with (files("kernelproof.models") / "digits.npz").open("rb") as file, np.load(file) as arrays:
        images = arrays["images"][:, None].astype(np.float32) / FULL_INK
        return Digits(images, arrays["labels"].astype(np.int64))
