"""Scattered images: a function of (seed, split, index), and what the geometry says."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from tasks.vision import scatter
from tasks.vision.scatter import Scatter, drawn

GLYPHS = load_digits().images
USUAL = Scatter(32, turn=20, smallest=1.1, largest=1.6, move=0.2, clutter=2, noise=0.06)
# A glyph fills the image pixel by pixel, and nothing lies around or over it.
PLAIN = Scatter(8, turn=0, smallest=2, largest=2, move=0, clutter=0, noise=0)


def test_an_image_depends_on_seed_split_and_index_alone():
    images, shown = drawn(GLYPHS, 3, 1, range(300), USUAL)
    again, shown_again = drawn(GLYPHS, 3, 1, [299, 7, 130], USUAL)
    assert np.array_equal(again, images[[299, 7, 130]])
    assert np.array_equal(shown_again, shown[[299, 7, 130]])
    seen = {image.tobytes() for image in images}
    assert len(seen) == 300
    for other in ((4, 1, 0), (3, 2, 0), (3, 1, 10**15), (3 + 2**32, 1, 0)):
        image, _ = drawn(GLYPHS, *other[:2], [other[2]], USUAL)
        assert image.tobytes() not in seen


def test_the_images_are_the_same_on_every_machine():
    images, shown = drawn(GLYPHS, 0, 0, range(64), USUAL)
    assert shown[:3].tolist() == [1015, 655, 225]
    assert hashlib.sha256(images.tobytes()).hexdigest()[:16] == "66799c9e7c57cebb"


def test_bits_of_a_stream_are_those_that_numpy_promises():
    """PCG64 from SeedSequence(0, spawn_key=(0, 0)), whose stream numpy keeps (NEP 19)."""
    stream = np.random.PCG64(np.random.SeedSequence(0).spawn(1)[0].spawn(1)[0])
    assert scatter._words(0, 0, 0, 5).tolist() == stream.random_raw(5).tolist()


def test_a_plain_image_is_its_glyph_in_two_colours():
    images, shown = drawn(GLYPHS, 0, 0, range(50), PLAIN)
    for image, which in zip(images.astype(float), shown, strict=True):
        cover = GLYPHS[which].reshape(-1) / 16
        for channel in image.reshape(3, -1):
            (slope, offset), *_ = np.linalg.lstsq(
                np.stack([cover, np.ones(64)], 1), channel, rcond=None
            )
            assert np.abs(slope * cover + offset - channel).max() <= 1  # rounded to bytes
            assert offset <= 0.4 * 255 + 1, "the background is dark"
            assert offset + slope >= 0.6 * 255 - 1, "and the ink is light"


@pytest.mark.parametrize("degrees", [0, 15, -40, 90])
def test_a_glyph_is_pasted_as_torch_samples_a_grid(degrees):
    count, size = 6, 32
    draws = np.random.default_rng(0)
    side, across, down = draws.uniform(0.5, 0.9, (count, 1)), *draws.uniform(-1, 1, (2, count, 1))
    angle = np.full((count, 1), math.radians(degrees))
    pose = [v.astype(np.float32) for v in (np.cos(angle), np.sin(angle), side, across, down)]
    glyphs = GLYPHS[:count] / 16
    framed = np.pad(glyphs, ((0, 0), (1, 1), (1, 1))).astype(np.float32)
    # Output places -> the glyph's own: turned back, moved back and scaled back.
    cosine, sine, side, across, down = (torch.tensor(v) for v in pose)
    into = torch.cat([cosine, sine, -(cosine * across + sine * down)], 1) / side
    down_ = torch.cat([-sine, cosine, sine * across - cosine * down], 1) / side
    grid = torch.nn.functional.affine_grid(
        torch.stack([into, down_], 1), [count, 1, size, size], align_corners=False
    )
    sampled = torch.nn.functional.grid_sample(
        torch.tensor(glyphs, dtype=torch.float32)[:, None], grid, align_corners=False
    )
    pasted = torch.from_numpy(scatter._pasted(framed, pose, size))
    torch.testing.assert_close(pasted, sampled.reshape(count, -1), atol=1e-4, rtol=0)


def test_a_turn_is_no_larger_than_it_may_be_and_is_a_turn():
    words = iter(np.random.default_rng(0).random((4, 2000, 1)))
    cosine, sine, side, across, down = scatter._pose(words, 20, (1.1, 1.6), 0.2)
    np.testing.assert_allclose(cosine**2 + sine**2, 1, rtol=1e-6)
    turned = np.degrees(np.arctan2(sine, cosine))
    assert -20 <= turned.min() < -19.9
    assert 19.9 < turned.max() <= 20
    assert (side.min(), side.max()) == pytest.approx((0.55, 0.8), abs=1e-3)
    assert max(abs(across).max(), abs(down).max()) <= 0.2


def test_noise_has_the_moments_of_four_uniforms():
    """Irwin-Hall of n = 4: variance 1 as scaled, excess kurtosis -6 / (5 n)."""
    noise = scatter._bell(scatter._words(0, 0, 0, 400_000)).astype(float)
    assert abs(noise.mean()) < 5 / math.sqrt(len(noise))
    assert noise.var() == pytest.approx(1, abs=0.01)
    assert (noise**4).mean() - 3 == pytest.approx(-0.3, abs=0.03)


def test_a_piece_of_clutter_is_a_quarter_of_a_glyph():
    framed = np.pad(np.ones((4, 8, 8)), ((0, 0), (1, 1), (1, 1)))
    quarters = scatter._quarters(framed, np.arange(4))
    assert quarters.sum((1, 2)).tolist() == [16] * 4
    assert np.array_equal(quarters.sum(0), framed[0])


def test_sides_out_of_order_are_refused():
    with pytest.raises(ValueError, match=r"smallest=1\.7 is above largest=1\.6; give them in or"):
        Scatter(32, 20, 1.7, 1.6, 0.2, 2, 0.06)
