"""ImageNet classification from an ImageFolder: top-1 and top-5 on val, calibration from train."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate
from torchvision.datasets import DatasetFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from flexround.models.base import ModelAdapter
from flexround.models.vision import VisionModel
from tasks import checkpoints
from tasks.base import VisionTask, topk_counts

log = logging.getLogger(__name__)

VAL_IMAGES = 50_000


@dataclass(frozen=True)
class Preprocessing:
    """What a checkpoint's images went through: resize the short side, crop the centre, normalise.

    Any field left at None is the architecture's own (torchvision's IMAGENET1K_V1, timm's config).
    """

    resize: int | None = None
    crop: int | None = None
    interpolation: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def completed_by(self, other: Preprocessing) -> Preprocessing:
        """Return this with its missing fields taken from other."""
        values = {}
        for field in fields(self):
            own = getattr(self, field.name)
            values[field.name] = getattr(other, field.name) if own is None else own
        return Preprocessing(**values)

    def transform(self, augment: bool) -> Callable[[Image.Image], Tensor]:
        """Return PIL image -> [3, crop, crop]; augmented as in training where asked."""
        mode = v2.InterpolationMode(self.interpolation)
        if augment:
            spatial = [
                v2.RandomResizedCrop(self.crop, interpolation=mode),
                v2.RandomHorizontalFlip(),
            ]
        else:
            spatial = [v2.Resize(self.resize, interpolation=mode), v2.CenterCrop(self.crop)]
        to_tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
        return v2.Compose([*spatial, *to_tensor, v2.Normalize(self.mean, self.std)])


def own_preprocessing(model: VisionModel, weights: Any = None) -> Preprocessing:
    """Return what weights (torchvision's entry) expect, or the first published ones of model."""
    if model.library == "torchvision":
        from torchvision.models import get_model_weights

        known = get_model_weights(model.name).__members__
        chosen = weights or next(iter(known.values()))  # the first published: IMAGENET1K_V1
        preset = chosen.transforms()
        return Preprocessing(
            preset.resize_size[0], preset.crop_size[0], preset.interpolation.value,
            preset.mean, preset.std,
        )  # fmt: skip
    from timm.data import resolve_data_config

    config = resolve_data_config(model.build(1).pretrained_cfg)
    crop = config["input_size"][-1]
    resize = round(crop / config["crop_pct"])
    return Preprocessing(resize, crop, config["interpolation"], config["mean"], config["std"])


def class_list() -> list[str]:
    """Return the 1,000 WordNet ids in class order, from the list that timm ships."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None, "timm is a dependency"
    assert spec.submodule_search_locations is not None, "timm is a package"
    folder = Path(spec.submodule_search_locations[0]) / "data" / "_info"
    return (folder / "imagenet_synsets.txt").read_text().split()


class _Images(DatasetFolder):
    """An ImageFolder whose class indices come from the list of all classes, present or not."""

    def __init__(self, root: Path, classes: list[str], transform: Callable[..., Tensor]) -> None:
        self._all_classes = classes
        super().__init__(
            str(root), loader=_load_image, extensions=IMG_EXTENSIONS, transform=transform,
            allow_empty=True,
        )  # fmt: skip

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        index = {name: i for i, name in enumerate(self._all_classes)}
        there = sorted(p.name for p in Path(directory).iterdir() if p.is_dir())
        unknown = [name for name in there if name not in index]
        if unknown:
            raise ValueError(
                f"imagenet_dir: folder {unknown[0]} in {directory} is not one of the "
                f"{len(index)} ImageNet classes (WordNet ids such as n01440764)"
            )
        return self._all_classes, index

    def __getitem__(self, index: int) -> Any:
        """Return (image, label), or the message of an image that can't be read.

        A worker process would bury an exception in its own traceback.
        """
        try:
            return super().__getitem__(index)
        except ValueError as error:
            return str(error)


def _stack(samples: list[Any]) -> Any:
    """Return a batch, or the first message in it."""
    return next((s for s in samples if isinstance(s, str)), None) or default_collate(samples)


def _load_image(path: str) -> Image.Image:
    try:
        with open(path, "rb") as file:
            return Image.open(file).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"image {path} cannot be read ({error}); replace or remove it") from error


class ImageNet(VisionTask):
    """1,000 classes; an imagenet_dir with val and, for calibration, train."""

    num_classes = 1000

    def __init__(
        self,
        version: int,
        root: str | None,
        preprocessing: Preprocessing,
        expected: float | None,
        tolerance: float,
        augment: bool,
        eval_batch_size: int,
        num_workers: int,
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

    def _images(self, part: str, transform: Callable[..., Tensor]) -> _Images:
        images = _Images(self._root / part, self._classes, transform)
        if not len(images):
            raise ValueError(f"imagenet_dir={self._root}: its folder {part} holds no image")
        return images

    def load(self, model: VisionModel, checkpoint: str | None) -> nn.Module:
        """Return the network and settle its preprocessing and expected accuracy."""
        source = checkpoint or model.weights
        if source is None:
            raise ValueError(f"{model.name} has no default ImageNet weights; give checkpoint=PATH")
        named = _torchvision_weights(model, source)
        self._preprocessing = self._preprocessing.completed_by(own_preprocessing(model, named))
        log.info("checkpoint %s, images: %s", source, self._preprocessing)
        if named is None:
            return checkpoints.load_into(model.build(self.num_classes), source, model)
        if self._expected is None and self._val_size == VAL_IMAGES:
            self._expected = named.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        network = model.build(self.num_classes)
        try:
            state = named.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"torchvision's {source} of {model.name} can't be fetched ({error}); "
                "without a network give checkpoint=PATH"
            ) from error
        network.load_state_dict(state)
        return network.eval()

    def example(self) -> Tensor:
        """Return two images [2, 3, crop, crop] from val."""
        images = self._images("val", self._preprocessing.transform(augment=False))
        loaded = _stack([images[0], images[len(images) - 1]])
        if isinstance(loaded, str):
            raise ValueError(loaded)
        pair: Tensor = loaded[0]
        return pair

    def calibration(self, num_samples: int, seed: int) -> Sequence[Tensor]:
        """Return num_samples images of train, drawn by seed, as one batch."""
        part = "train" if (self._root / "train").is_dir() else "val"
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
            loaded = _stack([images[int(i)] for i in chosen])
        if isinstance(loaded, str):
            raise ValueError(loaded)
        return [loaded[0]]

    @torch.no_grad()
    def evaluate(self, adapter: ModelAdapter) -> dict[str, float]:
        """Return top-1 and top-5 on val, in percent."""
        images = self._images("val", self._preprocessing.transform(augment=False))
        loader = DataLoader(
            images, self._eval_batch_size, num_workers=self._num_workers, collate_fn=_stack
        )
        top1 = top5 = 0
        for loaded in loader:
            if isinstance(loaded, str):
                raise ValueError(loaded)
            batch, labels = loaded
            logits = adapter.forward(batch).cpu()
            top1 += topk_counts(logits, labels, 1)
            top5 += topk_counts(logits, labels, 5)
        return {"top1": 100 * top1 / len(images), "top5": 100 * top5 / len(images)}

    def check_full_precision(self, metrics: dict[str, float]) -> None:
        """Refuse a full-precision network that misses its known accuracy.

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


def _torchvision_weights(model: VisionModel, source: str) -> Any:
    """Return torchvision's weights entry called source, or None where source is a file's name."""
    if model.library != "torchvision":
        return None
    from torchvision.models import get_model_weights

    known = get_model_weights(model.name)
    return known[source] if source in known.__members__ else None
