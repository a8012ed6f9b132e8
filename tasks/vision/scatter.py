"""Scattered digits: small glyphs turned, scaled, moved and coloured over clutter and noise.

An image is a function of (seed, split, index) and of how it is scattered, the same on every
machine: numpy's PCG64 gives the bits (numpy keeps a bit generator's stream, not its
distributions'), and all that follows is single operations that IEEE 754 rounds one way (+, -, *, /,
floor), before the pixels are rounded to bytes. What is pasted in which order: `drawn`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

Array = NDArray[Any]
GLYPH = 8  # pixels a side of a glyph
INK = 16  # the largest value in one
DARK = np.float32(0.4)  # the most of a background's red, green and blue; an ink's are as light
CHUNK = 128  # images that are drawn at a time: their pixels fit a processor's cache
FLAT = 7  # uniforms of the digit's glyph, the background's colour and the ink's
POSE = 4  # of a turn, a scale and a place
PIECE = 5  # of a piece's glyph, its quarter and its colour


@dataclass(frozen=True)
class Scatter:
    """How far digits are scattered.

    Attributes:
        size: pixels a side of an image.
        turn: the largest turn of a digit, in degrees either way.
        smallest: side of the smallest digit, in halves of the image's.
        largest: side of the largest.
        move: the largest move of a digit's centre from the image's, in halves of its side.
        clutter: quarters of other glyphs beneath the digit.
        noise: standard deviation of each colour of each pixel, of 1.
    """

    size: Annotated[int, Field(ge=8, le=1024)]
    turn: Annotated[float, Field(ge=0, le=90)]
    smallest: Annotated[float, Field(gt=0, le=4)]
    largest: Annotated[float, Field(gt=0, le=4)]
    move: Annotated[float, Field(ge=0, le=1)]
    clutter: Annotated[int, Field(ge=0, le=16)]
    noise: Annotated[float, Field(ge=0, le=1)]

    def __post_init__(self) -> None:
        """Check that the sides are in order."""
        if self.smallest > self.largest:
            raise ValueError(
                f"task.scatter: smallest={self.smallest:g} is above largest={self.largest:g}; "
                "give them in order"
            )

    @property
    def sides(self) -> tuple[float, float]:
        """Return the smallest and the largest side."""
        return self.smallest, self.largest


def drawn(
    glyphs: Array, seed: int, split: int, indices: Sequence[int], scatter: Scatter
) -> tuple[Array, Array]:
    """Return images uint8 [index, 3, size, size], and which of the glyphs each shows [index].

    On a dark background of one colour lie quarters of any glyphs, turned by up to 90 degrees and
    anywhere, each of a colour of its own; over them the digit, in one light colour; then noise.

    Args:
        glyphs: [glyph, 8, 8], from 0 to 16.
        seed: of all images.
        split: names a stream of images.
        indices: which images of that stream.
        scatter: how far they are scattered.
    """
    framed = np.pad(glyphs.astype(np.float32) / INK, ((0, 0), (1, 1), (1, 1)))
    parts = [
        _chunk(framed, seed, split, indices[start : start + CHUNK], scatter)
        for start in range(0, len(indices), CHUNK)
    ]
    images, shown = (np.concatenate(part) for part in zip(*parts, strict=True))
    return images, shown


def _chunk(
    framed: Array, seed: int, split: int, indices: Sequence[int], scatter: Scatter
) -> tuple[Array, Array]:
    counted = FLAT + POSE + scatter.clutter * (PIECE + POSE)
    pixels = 3 * scatter.size**2
    words = np.stack([_words(seed, split, index, counted + pixels) for index in indices])
    uniform = ((words[:, :counted] >> np.uint64(11)).astype(np.float64) * 2.0**-53).T[..., None]
    take = iter(uniform)
    shown = _choice(take, len(framed))
    background, ink = DARK * _colour(take), 1 - DARK * _colour(take)
    canvas = np.repeat(background, scatter.size**2, axis=2)  # [image, 3, pixels]
    for _ in range(scatter.clutter):
        glyph, quarter, colour = _choice(take, len(framed)), _choice(take, 4), _colour(take)
        pose = _pose(take, 90, scatter.sides, 0.8)
        cover = _pasted(_quarters(framed[glyph], quarter), pose, scatter.size)
        canvas += cover[:, None] * (colour - canvas)
    pose = _pose(take, scatter.turn, scatter.sides, scatter.move)
    canvas += _pasted(framed[shown], pose, scatter.size)[:, None] * (ink - canvas)
    canvas += scatter.noise * _bell(words[:, counted:]).reshape(canvas.shape)
    images = np.floor(np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)
    return images.reshape(-1, 3, scatter.size, scatter.size), shown


def _words(seed: int, split: int, index: int, count: int) -> Array:
    """Return the first words of an image's own stream of bits: uint64 [count]."""
    stream = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(split, index)))
    return np.asarray(stream.random_raw(count))


def _bell(words: Array) -> Array:
    """Return a number for each word, float32: the sum of its four 16-bit parts, of variance 1."""
    total = sum((words >> np.uint64(16 * part)) & np.uint64(0xFFFF) for part in range(4))
    deviation = math.sqrt(4 * (2.0**32 - 1) / 12)
    drawn: Array = (np.asarray(total).astype(np.float64) - 2 * 65535) / deviation
    return drawn.astype(np.float32)


def _choice(take: Iterator[Array], among: int) -> Array:
    """Return a whole number below among for each image."""
    return np.asarray(np.floor(next(take)[:, 0] * among), dtype=np.int64)


def _colour(take: Iterator[Array]) -> Array:
    """Return a colour for each image, float32 [image, 3, 1]."""
    return np.stack([next(take) for _ in range(3)], axis=1).astype(np.float32)


def _pose(
    take: Iterator[Array], turn: float, sides: tuple[float, float], move: float
) -> Sequence[Array]:
    """Return (cosine, sine, half side, across, down) of each image's piece, float32 [image, 1].

    The tangent t of half the angle is uniform, so that no library's sine is asked for:
    cos = (1 - t^2) / (1 + t^2), sin = 2 t / (1 + t^2).
    """
    most = round(math.tan(math.radians(turn / 2)), 9)
    tangent, part, across, down = (next(take) for _ in range(POSE))
    tangent = (2 * tangent - 1) * most
    square = tangent * tangent
    side = (sides[0] + (sides[1] - sides[0]) * part) / 2
    found = (
        (1 - square) / (1 + square), 2 * tangent / (1 + square), side,
        (2 * across - 1) * move, (2 * down - 1) * move,
    )  # fmt: skip
    return [value.astype(np.float32) for value in found]


def _quarters(framed: Array, quarter: Array) -> Array:
    """Return framed glyphs [image, 10, 10] with all but one quarter of each left blank."""
    half = np.arange(GLYPH + 2) > GLYPH // 2
    rows = half == (quarter[:, None] >= 2)  # [image, 10]
    columns = half == (quarter[:, None] % 2 == 1)
    return np.where(rows[:, :, None] & columns[:, None, :], framed, np.float32(0))


def _pasted(framed: Array, pose: Sequence[Array], size: int) -> Array:
    """Return how much of each pixel a glyph in its pose covers, float32 [image, size * size].

    Between the glyph's own pixels it is interpolated linearly, beyond them there is nothing.
    """
    cosine, sine, side, across, down = pose
    middles = ((2 * np.arange(size) + 1) / size - 1).astype(np.float32)
    x, y = np.tile(middles, size) - across, np.repeat(middles, size) - down  # [image, pixels]
    last = np.float32(GLYPH + 1)  # of the frame, whose outermost pixels are blank
    column = np.clip((cosine * x + sine * y) / side * 4 + np.float32(4.5), 0, last)
    row = np.clip((cosine * y - sine * x) / side * 4 + np.float32(4.5), 0, last)
    left, top = (np.minimum(place.astype(np.int64), GLYPH) for place in (column, row))
    column -= left
    row -= top
    width = GLYPH + 2
    at = np.arange(len(framed))[:, None] * width**2 + top * width + left
    flat = framed.reshape(-1)
    upper = flat[at] + column * (flat[at + 1] - flat[at])
    lower = flat[at + width] + column * (flat[at + width + 1] - flat[at + width])
    return np.asarray(upper + row * (lower - upper))
