"""The bundled digits are the data set that they say they are."""

import hashlib
from importlib.resources import files

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from kernelproof.models.digits import Digits, load_digits
from kernelproof.spec import ParameterError


def test_the_digits_are_the_1797_of_uci_bit_for_bit():
    digits = load_digits()
    assert digits.images.shape == (1797, 1, 8, 8)
    assert (digits.images.min(), digits.images.max()) == (0, 1)
    # The class counts that the data set's own description (optdigits.names) gives for its test set.
    assert np.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    ink = (digits.images * 16).astype(np.uint8).tobytes() + digits.labels.astype(np.uint8).tobytes()
    assert hashlib.sha256(ink).hexdigest() == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def test_source_and_licence_travel_with_the_digits():
    folder = files("kernelproof.models")
    with (folder / "digits.npz").open("rb") as file, np.load(file) as arrays:
        for text in (str(arrays["source"]) + str(arrays["licence"]), (folder / "DIGITS.md").read_text("utf-8")):
            assert "10.24432/C50P49" in text
            assert "CC BY 4.0" in text


def test_a_split_is_a_partition_and_the_same_for_the_same_seed():
    digits = load_digits()
    train, held_out = digits.split()
    assert (len(train), len(held_out)) == (1437, 360)
    both = np.concatenate([train.images, held_out.images]).reshape(1797, -1)
    assert np.array_equal(np.sort(both, axis=0), np.sort(digits.images.reshape(1797, -1), axis=0))
    assert np.array_equal(digits.split()[0].images, train.images)
    assert not np.array_equal(digits.split(seed=1)[0].images, train.images)


@pytest.mark.parametrize("held_out", [0, 1797, -3, 2.5])
def test_a_split_that_leaves_a_side_empty_is_refused(held_out):
    with pytest.raises(ParameterError, match=r"Digits\.split: held_out="):
        load_digits().split(held_out=held_out)


def test_digits_of_another_shape_are_refused():
    with pytest.raises(TypeCheckError):
        Digits(np.zeros((2, 8, 8), np.float32), np.zeros(2, np.int64))
