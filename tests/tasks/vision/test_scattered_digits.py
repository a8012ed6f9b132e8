"""The embedded default: whose glyphs are in which images, and networks that are trained once."""

from __future__ import annotations

import re

import pytest
import torch
from sklearn.datasets import load_digits

from flexround.models.vision import VisionModel
from flexround.utils.threads import computing_on
from results.records.store import Store
from tasks.vision.scatter import Scatter
from tasks.vision.scattered_digits import (
    CALIBRATION,
    TEST,
    TRAINING_GLYPHS,
    ScatteredDigits,
    Stream,
)
from tests.conftest import TINY as OPTIONS

TINY = VisionModel("timm", "test_efficientnet", None, 8, False, False, [])
USUAL = Scatter(32, turn=20, smallest=1.1, largest=1.6, move=0.2, clutter=2, noise=0.06)
BRIEF = Stream(epochs=2, batch_size=64, lr=0.1, images=256)


def scattered(cache_dir, test_images=300, seed=0, scatter=USUAL):
    return ScatteredDigits(1, str(cache_dir), 250, test_images, seed, scatter)


def test_test_glyphs_are_of_other_forms_than_the_training_ones():
    """Every form begins with the ten digits, at least once and most of a second time."""
    labels = "".join(map(str, load_digits().target))
    forms = [found.start() for found in re.finditer("01234567890123456", labels)]
    assert len(forms) == 14
    assert forms[10] == TRAINING_GLYPHS


def test_images_of_each_stream_show_their_own_glyphs_labels(cache_dir):
    plain = Scatter(8, turn=0, smallest=2, largest=2, move=0, clutter=0, noise=0)
    task = scattered(cache_dir, scatter=plain)
    data = load_digits()
    forms = {TEST: slice(TRAINING_GLYPHS, None), CALIBRATION: slice(TRAINING_GLYPHS)}
    for split, own in forms.items():
        images, labels = task.images(split, range(40))
        for image, label in zip(images, labels, strict=True):
            shown = image[0].double().reshape(-1)
            glyphs = torch.tensor(data.images[own]).reshape(-1, 64)
            like = torch.corrcoef(torch.cat([shown[None], glyphs]))[0, 1:].abs()
            assert data.target[own][like.argmax()] == label
            assert like.max() > 0.99


def test_the_test_images_are_those_that_are_asked_for(cache_dir):
    task = scattered(cache_dir)
    batches = list(task.test_batches())
    assert [len(images) for images, _ in batches] == [250, 50]
    images = torch.cat([images for images, _ in batches])
    assert images.shape == (300, 3, 32, 32)
    assert images.dtype == torch.float32
    assert -1 <= images.min() < -0.9
    assert 0.9 < images.max() <= 1
    more = torch.cat([images for images, _ in scattered(cache_dir, 400).test_batches()])
    assert torch.equal(more[:300], images)
    other = torch.cat([images for images, _ in scattered(cache_dir, seed=1).test_batches()])
    assert not torch.equal(other, images)


def test_calibration_samples_are_a_seeds_own_and_nest(cache_dir):
    task = scattered(cache_dir)
    (few,), (many,), (other,) = (
        task.calibration(8, 0), task.calibration(64, 0), task.calibration(64, 1)
    )  # fmt: skip
    assert torch.equal(many[:8], few)
    assert not any(torch.equal(image, one) for image in other for one in many)
    (last,) = task.calibration(2, 2**32 - 1)  # the largest seed
    assert last.shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match="num_samples=65537: scattered_digits draws up to 65536"):
        task.calibration(2**16 + 1, 0)


def test_a_network_is_trained_once_and_the_same_on_any_number_of_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(ScatteredDigits, "recipe", BRIEF)
    states, random = [], torch.get_rng_state()
    for threads in (1, 3):
        with computing_on(threads):
            states.append(scattered(tmp_path / str(threads)).load(TINY, None).state_dict())
            assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random)
    monkeypatch.setattr(ScatteredDigits, "_fit", lambda *_: pytest.fail("trained again"))
    states.append(scattered(tmp_path / "1").load(TINY, None).state_dict())
    for other in states[1:]:
        assert all(torch.equal(states[0][name], other[name]) for name in other)
    layouts = [weight.is_contiguous() for weight in states[0].values()]
    assert all(layouts), "read from its file it is laid out alike"


def test_other_images_or_another_recipe_are_another_network(tmp_path, monkeypatch):
    kept = {scattered(tmp_path)._cached_path(TINY), scattered(tmp_path, seed=1)._cached_path(TINY)}
    noisy = Scatter(32, turn=20, smallest=1.1, largest=1.6, move=0.2, clutter=2, noise=0.1)
    kept.add(scattered(tmp_path, scatter=noisy)._cached_path(TINY))
    assert scattered(tmp_path, test_images=7)._cached_path(TINY) in kept
    monkeypatch.setattr(ScatteredDigits, "recipe", BRIEF)
    kept.add(scattered(tmp_path)._cached_path(TINY))
    assert len(kept) == 4


def test_it_is_the_default_and_its_options_decide_the_run(cli, results_dir, monkeypatch):
    monkeypatch.setattr(ScatteredDigits, "recipe", BRIEF)
    monkeypatch.setattr(ScatteredDigits, "check_full_precision", lambda *_: None)
    network = [option for option in OPTIONS if not option.startswith("task=")]
    outcome = cli(
        "-m", *network, "task=scattered_digits", "quant=rtn", "num_samples=8",
        "task.test_images=200,400", "task.eval_batch_size=100",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    found = {r.settings["task"]["test_images"]: r for r in Store(results_dir).load()}
    assert set(found) == {200, 400}
    assert {record.task for record in found.values()} == {"scattered_digits"}


@pytest.mark.parametrize(
    ("given", "words"),
    [("task.scatter.smallest=1.7", "smallest=1.7 is above largest=1.6"),
     ("task.scatter.turn=91", "turn=91"), ("task.scatter.size=4", "size=4"),
     ("task.scatter.noise=-1", "noise=-1"), ("task.test_images=0", "test_images=0"),
     ("task.data_seed=-1", "data_seed=-1")],
)  # fmt: skip
def test_bad_options_are_one_line(cli, monkeypatch, given, words):
    monkeypatch.setattr(ScatteredDigits, "recipe", BRIEF)
    network = [option for option in OPTIONS if not option.startswith("task=")]
    outcome = cli(*network, "task=scattered_digits", "quant=rtn", given)
    assert outcome.status == 1
    assert words in outcome.err.strip().splitlines()[-1]
    assert len(outcome.err.strip().splitlines()) == 1
