"""The embedded task and its checkpoints."""

from __future__ import annotations

import pytest
import torch

from flexround.models.vision import VisionModel
from tasks.vision.digits import Digits

TINY = VisionModel("timm", "test_efficientnet", None, 8, False, False, [])


def digits(cache_dir):
    return Digits(1, str(cache_dir), size=32, eval_batch_size=180)


def test_the_split_is_fixed_stratified_and_disjoint(cache_dir):
    task = digits(cache_dir)
    (train, train_labels), (test, test_labels) = task.train, task.test
    assert (len(train), len(test)) == (1433, 364)
    assert train.shape[1:] == (3, 32, 32)
    counts = torch.bincount(test_labels)
    assert counts.min() >= 35
    assert torch.bincount(train_labels).min() >= 139
    seen = {image.numpy().tobytes() for image in train}
    assert not any(image.numpy().tobytes() in seen for image in test)


def test_calibration_is_training_images_by_seed(cache_dir):
    task = digits(cache_dir)
    (first,), (again,), (other,) = (task.calibration(64, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    train = {image.numpy().tobytes() for image in task.train[0]}
    drawn = [image.numpy().tobytes() for image in first]
    assert set(drawn) <= train
    assert len(set(drawn)) == 64


def test_a_network_is_trained_once_and_read_afterwards(cache_dir, tmp_path, monkeypatch):
    task = digits(tmp_path)
    first = task.load(TINY, None).state_dict()
    monkeypatch.setattr(Digits, "_fit", lambda *_: pytest_fail())
    again = task.load(TINY, None).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def pytest_fail():
    raise AssertionError("the cached network was not used")


@pytest.mark.slow
def test_a_damaged_network_is_set_aside_and_trained_again(tmp_path, caplog):
    task = digits(tmp_path)
    first = task.load(TINY, None).state_dict()
    (path,) = tmp_path.glob("checkpoints/*.safetensors")
    content = bytearray(path.read_bytes())
    content[-100] ^= 0xFF  # still a readable file
    path.write_bytes(content)
    again = task.load(TINY, None).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert "damaged" in caplog.text
    assert list(tmp_path.glob("checkpoints/*.damaged"))


@pytest.mark.slow
def test_training_leaves_the_global_random_state_alone(tmp_path):
    before = torch.get_rng_state()
    digits(tmp_path).load(TINY, None)
    assert torch.equal(before, torch.get_rng_state())
