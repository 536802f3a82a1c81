"""Mixed precision: the scale rounds nothing, saves what float16 would lose, and gives way where it overflows."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelproof.models import DivergenceError, LossScale, TrainConfig, load_digits, train
from kernelproof.models.loss_scale import in_float16
from kernelproof.proofs.bounds import unit_roundoff
from kernelproof.spec import Conv2d, Flatten, Linear, ParameterError, SpecChain, cross_entropy_dlogits

LINEAR = SpecChain(Flatten(), Linear(64, 10), input="n 1 8 8")
DIGITS, _ = load_digits().split()
BATCH, TARGET = DIGITS.images[:32], DIGITS.labels[:32]


def progress(config, steps, chain=LINEAR):
    return list(islice(train(chain, chain.initialise(0), DIGITS.images, DIGITS.labels, config), steps))


@given(exponent=st.integers(0, 126), interval=st.integers(1, 5), outcomes=st.lists(st.booleans(), max_size=30))
def test_the_scale_halves_after_an_overflow_and_doubles_after_an_interval_without_one(exponent, interval, outcomes):
    scale, since = LossScale(exponent, interval), 0
    for finite in outcomes:
        before, since = scale, since + 1 if finite else 0
        scale = scale.after(finite)
        if not finite:
            assert scale.factor == max(1.0, before.factor / 2)
        elif since == interval and before.exponent < 126:
            assert scale.factor == 2 * before.factor
        else:
            assert scale.factor == before.factor
        since = 0 if scale.factor != before.factor else since


def test_scaling_rounds_nothing():
    parameters = LINEAR.initialise(0)
    _, loss, once = in_float16(LINEAR, parameters, BATCH, TARGET, LossScale(8))
    _, again, larger = in_float16(LINEAR, parameters, BATCH, TARGET, LossScale(12))
    assert loss == again
    assert all(np.array_equal(once[key], larger[key]) and once[key].any() for key in parameters)
    assert all(each.dtype == np.float32 for each in larger.values())


def test_gradients_too_small_for_float16_are_saved():
    weight, bias = np.zeros((10, 64), np.float32), np.zeros(10, np.float32)
    bias[3] = 18  # The others' gradients, exp(-18) = 1.5e-8, are less than half of float16's least number.
    parameters, image, target = LINEAR.parameters({"fc1.weight": weight, "fc1.bias": bias}), BATCH[:1], np.array([3])
    exact = cross_entropy_dlogits(bias[None], target)[0]
    _, _, lost = in_float16(LINEAR, parameters, image, target, LossScale(0))
    _, _, saved = in_float16(LINEAR, parameters, image, target, LossScale(16))
    assert lost["fc1.bias"].nonzero()[0].tolist() == [3]
    assert saved["fc1.bias"].all()
    # Rounded once to float16; a power of two comes and goes exactly.
    assert (abs(saved["fc1.bias"] - exact) <= unit_roundoff("float16") * abs(exact)).all()


def test_a_step_that_overflows_is_skipped_and_the_next_ones_are_not():
    steps = progress(TrainConfig(loss_scale=LossScale(20)), 12)
    first = LINEAR.initialise(0)
    skipped = [each.skipped for each in steps]
    assert skipped[0]
    assert not skipped[-1]
    for each, was_skipped, before in zip(steps, skipped, [first, *(each.parameters for each in steps)], strict=False):
        same = all(np.array_equal(each.parameters[key], before[key]) for key in first)
        assert same == was_skipped


def test_training_with_a_scale_learns_as_without():
    scaled, full = (
        progress(TrainConfig(epochs=2, loss_scale=scale), None)[-1].accuracy for scale in (LossScale(), None)
    )
    assert scaled >= 0.8
    assert full >= 0.8


def test_gradients_that_overflow_without_a_scale_are_told():
    chain = SpecChain(Conv2d(1, 1, 3), Flatten(), Linear(36, 2), input="n 1 8 8")
    weight = np.zeros((2, 36), np.float32)
    weight[0] = 1
    parameters = {
        "conv1.weight": np.zeros((1, 1, 3, 3), np.float32), "conv1.bias": np.zeros(1, np.float32),
        "fc1.weight": weight, "fc1.bias": np.zeros(2, np.float32),
    }  # fmt: skip
    images, labels = np.full((4, 1, 8, 8), 6e4, np.float32), np.zeros(4, np.int64)
    run = train(chain, parameters, images, labels, TrainConfig(batch_size=4, loss_scale=LossScale(1)))
    assert next(run).skipped
    with pytest.raises(DivergenceError, match="overflow float16 without any scale"):
        list(run)


@pytest.mark.parametrize("wrong", [{"exponent": -1}, {"exponent": 127}, {"interval": 0}, {"exponent": 1.5}])
def test_what_is_no_scale_is_refused(wrong):
    with pytest.raises(ParameterError, match="LossScale"):
        LossScale(**wrong)
