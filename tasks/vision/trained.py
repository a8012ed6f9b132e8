"""Base class of tasks that train their full-precision networks themselves, on first use.

A network is trained once from a seed, kept in cache_dir/checkpoints, and read by all later runs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from flexround.models.vision import VisionModel
from flexround.utils.threads import computing_on
from tasks.first_use import first_use, not_kept
from tasks.vision import checkpoints
from tasks.vision.base import VisionTask

log = logging.getLogger(__name__)

Size = Annotated[int, Field(ge=1, le=1024)]


@dataclass(frozen=True)
class Recipe:
    """How the full-precision networks are trained; part of the cached file's name."""

    epochs: int
    batch_size: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0
    version: int = 1


class TrainedTask(VisionTask):
    """A task whose networks are trained here, on the CPU.

    Attributes:
        name: begins the name of a kept network's file.
        recipe: how they are trained.
        layout: of images and weights while they are.
        threads: of torch while they are, which decide a sum's last bits; None is the run's.
    """

    name: str
    recipe: Recipe
    layout: torch.memory_format = torch.contiguous_format
    threads: int | None = None
    _cache_dir: Path

    @abstractmethod
    def made_from(self, model: VisionModel) -> list[Any]:
        """Return what decides the trained network, as values of JSON."""

    @abstractmethod
    def training_images(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Return (images [image, 3, height, width], labels [image]) of an epoch, from 0 on.

        There are as many in each.
        """

    def describe(self, model: VisionModel, checkpoint: str | None, folder: Path) -> bool:
        """Return whether the network is still to be trained; `bare` needs nothing of it."""
        return checkpoint is None and not self._cached_path(model).exists()

    def load(self, model: VisionModel, checkpoint: str | None) -> nn.Module:
        """Return the network at checkpoint, or the one trained on first use and cached."""
        if checkpoint is not None:
            return checkpoints.load_into(self.build(model), checkpoint, model)
        path = self._cached_path(model)
        try:
            if path.exists() and (found := self._read(path, model, mend=False)):
                return found
        except OSError as error:  # it may be sound, and is left to those who can read it
            not_kept(path, error)
            return self._fit(model)
        # The second of two jobs that need the same network waits and then reads the first one's.
        with first_use(path) as kept:
            if kept and path.exists() and (found := self._read(path, model, mend=True)):
                return found
            network = self._fit(model)
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

    def _cached_path(self, model: VisionModel) -> Path:
        key = json.dumps(self.made_from(model), sort_keys=True)
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        return self._cache_dir / "checkpoints" / f"{self.name}-{model.name}-{digest}.safetensors"

    def _fit(self, model: VisionModel) -> nn.Module:
        """Train a network from the recipe's seed; the caller's random state is left alone."""
        recipe = self.recipe
        log.info("training %s on %s (first use, %d epochs)", model.name, self.name, recipe.epochs)
        with torch.random.fork_rng(), computing_on(self.threads):
            torch.manual_seed(recipe.seed)
            network = self.build(model).train().to(memory_format=self.layout)
            optimizer = torch.optim.SGD(
                network.parameters(),
                lr=recipe.lr,
                momentum=recipe.momentum,
                weight_decay=recipe.weight_decay,
                nesterov=True,
            )
            images, labels = self.training_images(0)
            steps = recipe.epochs * (len(images) // recipe.batch_size)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, steps)
            for epoch in range(recipe.epochs):
                if epoch:
                    images, labels = self.training_images(epoch)
                order = torch.randperm(len(images))
                for batch in order.split(recipe.batch_size):
                    if len(batch) < recipe.batch_size:
                        continue
                    inputs = images[batch].contiguous(memory_format=self.layout)
                    loss = nn.functional.cross_entropy(network(inputs), labels[batch])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
        return network.to(memory_format=torch.contiguous_format).eval()
