"""scikit-learn's bundled handwritten digits at 32 x 32: the no download.

1,797 images of UCI's optical recognition of handwritten digits; every fifth of each class tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flexround.models.vision import VisionModel
from tasks.bounds import Count
from tasks.vision.trained import Recipe, Size, TrainedTask


class Digits(TrainedTask):
    """Ten classes, 1,433 training and 364 test images, top-1 in percent."""

    num_classes = 10
    name = "digits"
    recipe = Recipe(epochs=12, batch_size=64, lr=0.05)

    def __init__(self, version: int, cache_dir: str, size: Size, eval_batch_size: Count) -> None:
        from sklearn.datasets import load_digits

        self.version = version
        self.image_size = size
        self._cache_dir = Path(cache_dir)
        self._eval_batch_size = eval_batch_size
        data = load_digits()
        images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16  # [N, 1, 8, 8]
        images = nn.functional.interpolate(images, size=(size, size), mode="bilinear")
        images = ((images - 0.5) / 0.5).expand(-1, 3, -1, -1).contiguous()
        labels = torch.tensor(data.target)
        test = torch.zeros(len(labels), dtype=torch.bool)
        for digit in range(self.num_classes):
            test[(labels == digit).nonzero()[::5, 0]] = True
        self.train = images[~test], labels[~test]
        self.test = images[test], labels[test]

    def example(self) -> Tensor:
        """Return two images [2, 3, size, size]."""
        return self.train[0][:2]

    def calibration(self, num_samples: int, seed: int) -> Sequence[Tensor]:
        """Return num_samples training images, drawn without replacement by seed, as one batch."""
        images, _ = self.train
        if num_samples > len(images):
            raise ValueError(f"num_samples={num_samples}: digits has {len(images)} training images")
        generator = torch.Generator().manual_seed(seed)
        return [images[torch.randperm(len(images), generator=generator)[:num_samples]]]

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images [batch, 3, size, size], labels [batch]) of the test images."""
        images, labels = (part.split(self._eval_batch_size) for part in self.test)
        yield from zip(images, labels, strict=True)

    def made_from(self, model: VisionModel) -> list[Any]:
        """Return what decides the trained network, as values of JSON."""
        return [model.library, model.name, self.image_size, asdict(self.recipe)]

    def training_images(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Return (images [image, 3, size, size], labels [image]), the same in every epoch."""
        return self.train
