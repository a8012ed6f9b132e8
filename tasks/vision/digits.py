"""scikit-learn's bundled handwritten digits at 32 x 32: the embedded default, no download.

1,797 images of UCI's optical recognition of handwritten digits; every fifth of each class tests.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from flexround.models.vision import VisionModel
from tasks.bounds import Count
from tasks.first_use import first_use, not_kept
from tasks.vision import checkpoints
from tasks.vision.base import VisionTask

log = logging.getLogger(__name__)

Size = Annotated[int, Field(ge=1, le=1024)]


@dataclass(frozen=True)
class Recipe:
    """How the full-precision networks are trained; part of the cached file's name."""

    epochs: int = 12
    batch_size: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0
    version: int = 1


class Digits(VisionTask):
    """Ten classes, 1,433 training and 364 test images, top-1 in percent."""

    num_classes = 10

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

    def describe(self, model: VisionModel, checkpoint: str | None, folder: Path) -> bool:
        """Return whether the network is still to be trained; `bare` needs nothing of it."""
        return checkpoint is None and not self._cached_path(model, Recipe()).exists()

    def load(self, model: VisionModel, checkpoint: str | None) -> nn.Module:
        """Return the network at checkpoint, or the one trained on first use and cached."""
        if checkpoint is not None:
            return checkpoints.load_into(self.build(model), checkpoint, model)
        recipe = Recipe()
        path = self._cached_path(model, recipe)
        try:
            if path.exists() and (found := self._read(path, model, mend=False)):
                return found
        except OSError as error:  # it may be sound, and is left to those who can read it
            not_kept(path, error)
            return self._fit(model, recipe)
        # The second of two jobs that need the same network waits and then reads the first one's.
        with first_use(path) as kept:
            if kept and path.exists() and (found := self._read(path, model, mend=True)):
                return found
            network = self._fit(model, recipe)
            if kept:
                try:
                    checkpoints.save(network, path)
                except OSError as error:
                    not_kept(path, error)
        return network

    def _read(self, path: Path, model: VisionModel, mend: bool) -> nn.Module | None:
        """Return the network kept at path; None where it is damaged, set aside if mend.

        Raises:
            OSError: when it can't be read.
        """
        try:
            checkpoints.check_digest(path)
            return checkpoints.load_into(self.build(model), str(path), model)
        except ValueError as error:
            if mend:
                log.warning("cached checkpoint set aside and trained again: %s", error)
                path.replace(path.with_suffix(".damaged"))
            return None

    def _cached_path(self, model: VisionModel, recipe: Recipe) -> Path:
        size = self.train[0].shape[-1]
        key = json.dumps([model.library, model.name, size, asdict(recipe)], sort_keys=True)
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        return self._cache_dir / "checkpoints" / f"digits-{model.name}-{digest}.safetensors"

    def _fit(self, model: VisionModel, recipe: Recipe) -> nn.Module:
        """Train a network from the recipe's seed; the caller's random state is left alone."""
        images, labels = self.train
        log.info("training %s on digits (first use, %d epochs)", model.name, recipe.epochs)
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            network = self.build(model).train()
            optimizer = torch.optim.SGD(
                network.parameters(),
                lr=recipe.lr,
                momentum=recipe.momentum,
                weight_decay=recipe.weight_decay,
                nesterov=True,
            )
            steps = recipe.epochs * (len(images) // recipe.batch_size)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, steps)
            for _ in range(recipe.epochs):
                order = torch.randperm(len(images))
                for batch in order.split(recipe.batch_size):
                    if len(batch) < recipe.batch_size:
                        continue
                    loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
        return network.eval()
