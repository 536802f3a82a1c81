"""Training moves every parameter, the same way every time, and its results survive the disk."""

import os
from itertools import islice

import numpy as np
import pytest
from safetensors.numpy import save

from kernelproof.models import host
from kernelproof.models.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from kernelproof.models.cnn2 import CNN2Config, cnn_with_relu_spec
from kernelproof.models.digits import load_digits
from kernelproof.models.training import DivergenceError, TrainConfig, evaluate, train
from kernelproof.proofs.bounds import gamma, unit_roundoff
from kernelproof.spec import ParameterError, ShapeError, UnsupportedError, cross_entropy, cross_entropy_dlogits

CHAIN = cnn_with_relu_spec(CNN2Config(4, 8, image_size=8))
DIGITS, HELD_OUT = load_digits().split()


def run(steps: int | None = None, chain=CHAIN, **config):
    return list(islice(train(chain, chain.initialise(0), DIGITS.images, DIGITS.labels, TrainConfig(**config)), steps))


def test_a_training_step_gives_every_parameter_a_gradient_and_moves_it():
    parameters, x, target = CHAIN.initialise(0), DIGITS.images[:32], DIGITS.labels[:32]
    logits, backward = CHAIN.vjp(parameters, x)
    gradients = backward(cross_entropy_dlogits(logits, target)).parameters
    assert all(gradient.any() for gradient in gradients.values())
    (progress,) = run(steps=1)
    assert all((progress.parameters[key] != array).any() for key, array in parameters.items())


def test_two_steps_follow_the_equations_of_momentum():
    first, second = run(steps=2, learning_rate=0.1, momentum=0.5)
    order = np.random.default_rng(0).permutation(len(DIGITS))
    parameters, velocity = CHAIN.initialise(0), 0.0
    for progress, batch in zip((first, second), (order[:32], order[32:64]), strict=True):
        logits, backward = CHAIN.vjp(parameters, DIGITS.images[batch])
        assert progress.loss == cross_entropy(logits, DIGITS.labels[batch])
        assert progress.accuracy == np.mean(logits.argmax(axis=1) == DIGITS.labels[batch])
        gradient = backward(cross_entropy_dlogits(logits, DIGITS.labels[batch])).parameters["conv2.weight"]
        velocity = 0.5 * velocity + gradient
        expected = parameters["conv2.weight"] - 0.1 * velocity
        assert np.array_equal(progress.parameters["conv2.weight"], expected)
        parameters = progress.parameters


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    first, again, other = run(steps=5), run(steps=5), run(steps=5, seed=1)
    assert [each.loss for each in first] == [each.loss for each in again]
    assert all(first[-1].parameters[key].tobytes() == array.tobytes() for key, array in again[-1].parameters.items())
    assert [each.loss for each in first] != [each.loss for each in other]


def test_training_on_the_cpu_kernels_repeats_to_the_bit():
    first, again = (run(steps=5, chain=CHAIN.compile("cpu"))[-1].parameters for _ in range(2))
    assert all(first[key].tobytes() == array.tobytes() for key, array in again.items())


def test_an_epoch_sees_every_image_once_and_counts_its_steps():
    seen = []

    def perform(operator, *args, **kwargs):
        if operator is cross_entropy:
            seen.extend(args[1])
        return operator(*args, **kwargs)

    progress = run(chain=CHAIN.compile(perform), epochs=2, batch_size=500)
    assert [(each.epoch, each.step, each.steps) for each in progress] == [
        (1, 1, 6),
        (1, 2, 6),
        (1, 3, 6),
        (2, 4, 6),
        (2, 5, 6),
        (2, 6, 6),
    ]
    assert np.array_equal(np.bincount(seen), 2 * np.bincount(DIGITS.labels))


def test_training_learns_digits_that_it_has_not_seen():
    before = evaluate(CHAIN, CHAIN.initialise(0), HELD_OUT.images, HELD_OUT.labels)
    after = evaluate(CHAIN, run(epochs=3)[-1].parameters, HELD_OUT.images, HELD_OUT.labels)
    assert after.loss < before.loss
    # Whoever guesses one class in ten gets half of 360 right less than once in 10**79 times (Chernoff).
    assert after.accuracy > 0.5
    assert after.accuracy == np.mean(after.predictions == HELD_OUT.labels)


def test_an_evaluation_does_not_depend_on_the_size_of_its_batches():
    whole, parts = (
        evaluate(CHAIN, CHAIN.initialise(0, np.float64), HELD_OUT.images.astype(np.float64), HELD_OUT.labels, size)
        for size in (360, 77)
    )
    assert np.array_equal(whole.predictions, parts.predictions)
    # Means of the same 360 positive losses, summed in another order.
    assert abs(whole.loss - parts.loss) <= 2 * gamma(360, unit_roundoff("float64")) * whole.loss


def test_a_loss_that_is_no_number_stops_training_and_says_why():
    says = r"the loss of step \d+ is (nan|inf); .* Lower learning_rate=1e\+30"
    with pytest.raises(DivergenceError, match=says), np.errstate(all="ignore"):
        run(learning_rate=1e30)


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": -1.0}, {"momentum": float("nan")}, {"seed": 0.5}]
)
def test_a_wrong_config_is_refused_when_it_is_made(wrong):
    with pytest.raises(ParameterError, match=f"TrainConfig: {next(iter(wrong))}="):
        TrainConfig(**wrong)


def test_images_without_labels_are_refused_at_once():
    for call in (train, evaluate):
        for images, labels in ((DIGITS.images, DIGITS.labels[1:]), (DIGITS.images[:0], DIGITS.labels[:0])):
            with pytest.raises(ShapeError, match="one label for each of 1 image or more"):
                call(CHAIN, CHAIN.initialise(0), images, labels)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_checkpoint_gives_back_the_same_bits_under_the_same_keys(dtype, tmp_path):
    parameters = CHAIN.initialise(3, dtype)
    save_checkpoint(parameters, tmp_path / "cnn2.safetensors")
    loaded = load_checkpoint(CHAIN, tmp_path / "cnn2.safetensors")
    assert list(loaded) == list(parameters)
    assert all(loaded[key].dtype == dtype and np.array_equal(loaded[key], array) for key, array in parameters.items())
    assert [each.name for each in tmp_path.iterdir()] == ["cnn2.safetensors"]


def test_views_are_saved_as_they_read(tmp_path):
    parameters = CHAIN.initialise(0)
    turned = {key: np.asfortranarray(array[::-1]) for key, array in parameters.items()}
    save_checkpoint(turned, tmp_path / "turned")
    assert all(
        np.array_equal(array, parameters[key][::-1])
        for key, array in load_checkpoint(CHAIN, tmp_path / "turned").items()
    )


def test_a_checkpoint_that_is_not_the_chains_is_refused(tmp_path):
    path = tmp_path / "checkpoint"
    parameters = dict(CHAIN.initialise(0))
    path.write_bytes(save(parameters)[:-8])
    with pytest.raises(CheckpointError, match="needs a whole safetensors file"):
        load_checkpoint(CHAIN, path)
    save_checkpoint({**parameters, "fc2.weight": parameters["fc1.weight"]}, path)
    with pytest.raises(ParameterError, match=r"'fc2\.weight' is unknown"):
        load_checkpoint(CHAIN, path)
    save_checkpoint({**parameters, "fc1.weight": parameters["fc1.weight"][:, 1:]}, path)
    with pytest.raises(ShapeError, match=r"fc1\.weight is \(10, 31\)"):
        load_checkpoint(CHAIN, path)
    with pytest.raises(UnsupportedError, match="of exact scalars"):
        save_checkpoint(CHAIN.initialise(0).astype(object), path)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(CHAIN, tmp_path / "nothing")


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    host.write_whole(path, b"old")

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        host.write_whole(path, b"new, half written")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_has_the_rights_of_any_other(tmp_path):
    host.write_whole(tmp_path / "whole", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode
