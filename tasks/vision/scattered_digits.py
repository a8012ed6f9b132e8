"""Scattered digits at 32 x 32, drawn from a seed without end: the embedded default, no download.

scikit-learn's digits hold 14 copies of one form, each filled in by one hand from the first digit to
the last: the labels show where one ends. Glyphs of the first ten forms train and calibrate, those
of the last four test. The data's own description counts 13 writers and names none of them, so that
one of them has filled in two forms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexround.models.vision import VisionModel
from tasks.bounds import Count, WholeNotNegative
from tasks.vision.scatter import Scatter, drawn
from tasks.vision.trained import Recipe, TrainedTask

TRAINING_GLYPHS = 1287  # those of the first ten forms, of 1,797
TRAINING, TEST, CALIBRATION = range(3)  # streams of images
MOST = 2**16  # calibration images of a seed, each 12 kB in memory


@dataclass(frozen=True)
class Stream(Recipe):
    """A recipe whose every epoch sees other images."""

    images: int = 5000  # of an epoch


class ScatteredDigits(TrainedTask):
    """Ten classes, top-1 in percent."""

    num_classes = 10
    name = "scattered_digits"
    recipe: Stream = Stream(epochs=10, batch_size=64, lr=0.05)
    layout = torch.channels_last
    threads = 2

    def __init__(
        self, version: int, cache_dir: str, eval_batch_size: Count, test_images: Count,
        data_seed: WholeNotNegative, scatter: Scatter,
    ) -> None:  # fmt: skip
        from sklearn.datasets import load_digits

        self.version = version
        self.image_size = scatter.size
        self._cache_dir = Path(cache_dir)
        self._eval_batch_size = eval_batch_size
        self._test_images, self._seed, self._scatter = test_images, data_seed, scatter
        data = load_digits()
        self._glyphs, self._labels = data.images, torch.tensor(data.target)

    def example(self) -> Tensor:
        """Return two images [2, 3, size, size]."""
        return self.training_images(0, 2)[0]

    def calibration(self, num_samples: int, seed: int) -> Sequence[Tensor]:
        """Return num_samples new images of training glyphs, another seed's are others, one batch.

        More samples of a seed begin with the fewer.
        """
        if num_samples > MOST:
            raise ValueError(
                f"num_samples={num_samples}: scattered_digits draws up to {MOST} calibration images"
            )
        start = seed * MOST
        return [normalized(self.images(CALIBRATION, range(start, start + num_samples))[0])]

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images [batch, 3, size, size], labels [batch]) of the test images."""
        images, labels = (part.split(self._eval_batch_size) for part in self._test)
        for batch, right in zip(images, labels, strict=True):
            yield normalized(batch), right

    def evaluation_data(self) -> tuple[Tensor, Tensor]:
        """Return the test images as bytes, and their labels."""
        return self._test

    def training_images(self, epoch: int, count: int | None = None) -> tuple[Tensor, Tensor]:
        """Return (images [image, 3, size, size], labels [image]) of an epoch, the first count."""
        start = epoch * self.recipe.images
        indices = range(start, start + (count or self.recipe.images))
        images, labels = self.images(TRAINING, indices)
        return normalized(images), labels

    def made_from(self, model: VisionModel) -> list[Any]:
        """Return what decides the trained network, as values of JSON."""
        scattered = [asdict(self._scatter), self._seed, self.version]
        return [model.library, model.name, *scattered, asdict(self.recipe)]

    def images(self, split: int, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return (images uint8 [index, 3, size, size], labels [index]) of one of the streams."""
        test = split == TEST
        own = slice(TRAINING_GLYPHS, None) if test else slice(TRAINING_GLYPHS)
        images, shown = drawn(self._glyphs[own], self._seed, split, indices, self._scatter)
        return torch.from_numpy(images), self._labels[own][torch.from_numpy(shown)]

    @cached_property
    def _test(self) -> tuple[Tensor, Tensor]:
        return self.images(TEST, range(self._test_images))


def normalized(images: Tensor) -> Tensor:
    """Return images of bytes as float32 from -1 to 1."""
    return (images / 255 - 0.5) / 0.5
