"""ImageNet classification from an ImageFolder: top-1 and top-5 on val, calibration from train."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from flexround.models.vision import VisionModel
from tasks.bounds import Count, NotNegative, WholeNotNegative
from tasks.vision import checkpoints
from tasks.vision.base import VisionTask
from tasks.vision.image_folder import Images, class_list, readable, stack
from tasks.vision.preprocessing import Preprocessing, own_preprocessing, torchvision_weights

log = logging.getLogger(__name__)

VAL_IMAGES = 50_000


class ImageNet(VisionTask):
    """1,000 classes; an imagenet_dir with val and, for calibration, train."""

    num_classes = 1000
    topk = (1, 5)

    def __init__(
        self,
        version: int,
        root: str | None,
        preprocessing: Preprocessing,
        expected: float | None,
        tolerance: NotNegative,
        augment: bool,
        eval_batch_size: Count,
        num_workers: WholeNotNegative,
    ) -> None:
        """Find the images.

        Raises:
            ValueError: when root is not given, missing or empty, or holds unknown classes.
        """
        self.version = version
        if root is None:
            raise ValueError("task=imagenet needs imagenet_dir=PATH, a folder with val and train")
        self._root = Path(root).expanduser()
        if not (self._root / "val").is_dir():
            raise ValueError(
                f"imagenet_dir={root}: no folder val there; it has to hold val/CLASS/*.JPEG"
            )
        self._preprocessing = preprocessing
        self._expected, self._tolerance = expected, tolerance
        self._augment = augment
        self._eval_batch_size, self._num_workers = eval_batch_size, num_workers
        self._classes = class_list()
        # Before any weight is loaded: unknown folders and an empty val are refused here.
        self._val_size = len(self._images("val", lambda image: image))

    def _images(self, part: str, transform: Callable[..., Tensor]) -> Images:
        images = Images(self._root / part, self._classes, transform)
        if not len(images):
            raise ValueError(f"imagenet_dir={self._root}: its folder {part} holds no image")
        return images

    def load(self, model: VisionModel, checkpoint: str | None) -> nn.Module:
        """Return the network and settle its preprocessing and expected accuracy."""
        source, named = self._settle(model, checkpoint)
        if named is None:
            return checkpoints.load_into(self.build(model), source, model)
        if self._expected is None and self._val_size == VAL_IMAGES:
            self._expected = named.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        network = self.build(model)
        try:
            state = named.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"torchvision's {source} of {model.name} can't be fetched ({error}); "
                "without a network give checkpoint=PATH"
            ) from error
        network.load_state_dict(state)
        return network.eval()

    def bare(self, model: VisionModel, checkpoint: str | None, folder: Path) -> nn.Module:
        """Return the architecture of checkpoint's network, and settle its preprocessing."""
        self._settle(model, checkpoint)
        return super().bare(model, checkpoint, folder)

    def _settle(self, model: VisionModel, checkpoint: str | None) -> tuple[str, Any]:
        """Return where the weights come from, and torchvision's entry of them or None."""
        source = checkpoint or model.weights
        if source is None:
            raise ValueError(f"{model.name} has no default ImageNet weights; give checkpoint=PATH")
        named = torchvision_weights(model, source)
        self._preprocessing = self._preprocessing.completed_by(own_preprocessing(model, named))
        self.image_size = self._preprocessing.crop
        log.info("checkpoint %s, images: %s", source, self._preprocessing)
        return source, named

    def example(self) -> Tensor:
        """Return two images [2, 3, crop, crop] from val."""
        images = self._images("val", self._preprocessing.transform(augment=False))
        return readable(stack([images[0], images[len(images) - 1]]))[0]

    def calibration(self, num_samples: int, seed: int) -> Sequence[Tensor]:
        """Return num_samples images of train, drawn by seed, as one batch."""
        part = "train" if (self._root / "train").is_dir() else "val"
        self.facts = {"calibration_images": part}
        if part == "val":
            log.warning(
                "imagenet_dir has no train: the calibration images are taken from val, "
                "so accuracy on val is not that of unseen images"
            )
        images = self._images(part, self._preprocessing.transform(self._augment))
        if num_samples > len(images):
            raise ValueError(f"num_samples={num_samples}: {self._root / part} has {len(images)}")
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(images), generator=generator)[:num_samples]
        # torchvision's random transforms draw from the global state.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            batch, _ = readable(stack([images[int(i)] for i in chosen]))
        return [batch]

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images [batch, 3, crop, crop], labels [batch]) of val.

        Raises:
            ValueError: when an image can't be read.
        """
        images = self._images("val", self._preprocessing.transform(augment=False))
        loader: DataLoader[Any] = DataLoader(
            images, self._eval_batch_size, num_workers=self._num_workers, collate_fn=stack
        )
        yield from map(readable, loader)

    def evaluation_data(self) -> Iterable[Any]:
        """Yield what tells val's images and their preparation apart from any other."""
        yield repr(self._preprocessing)
        if self._preprocessing.crop_mode not in (None, "center"):
            yield self._preprocessing.crop_mode
        for path, label in self._images("val", lambda image: image).samples:
            yield Path(path).relative_to(self._root).as_posix(), label, Path(path)

    def check_full_precision(self, metrics: dict[str, float]) -> None:
        """Check that the full-precision network has its known accuracy.

        Raises:
            ValueError: names what is usually wrong.
        """
        super().check_full_precision(metrics)
        if self._expected is None:
            log.warning(
                "full precision: %.2f %% top-1 on %d images, not checked: no published figure for "
                "this checkpoint on them; give expected_fp=VALUE", metrics["top1"], self._val_size,
            )  # fmt: skip
        elif abs(metrics["top1"] - self._expected) > self._tolerance:
            raise ValueError(
                f"full precision reaches {metrics['top1']:.2f} % top-1, expected are "
                f"{self._expected:.2f} % (tolerance {self._tolerance}): check the preprocessing "
                f"({self._preprocessing}), checkpoint and class folders, or set expected_fp"
            )
