"""Preprocessing of images: what a checkpoint was trained with, and the transform for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, TypeVar

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torchvision.transforms import v2

from flexround.models.vision import VisionModel
from tasks.bounds import Count, Positive

Interpolation = Literal[
    "nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos"
]
# What a resize keeps: all but the edges of the long side, the whole squeezed to a square, or the
# whole with borders.
CropMode = Literal["center", "squash", "border"]
T = TypeVar("T")
Colors = Annotated[Sequence[T], Field(min_length=3, max_length=3)]


@dataclass(frozen=True)
class Preprocessing:
    """Resize of the short side, crop of the centre [pixels], then (image - mean) / std.

    Under another crop_mode both sides are resized, or the long one.
    Any field left at None is the architecture's own (torchvision's IMAGENET1K_V1, timm's config).
    """

    resize: Count | None = None
    crop: Count | None = None
    interpolation: Interpolation | None = None
    mean: Colors[float] | None = None
    std: Colors[Positive] | None = None
    crop_mode: CropMode | None = field(default=None, repr=False)

    def completed_by(self, other: Preprocessing) -> Preprocessing:
        """Return this with its missing fields taken from other.

        Raises:
            ValueError: when the crop is larger than what is left of an image.
        """
        values = {}
        for each in fields(self):
            own = getattr(self, each.name)
            values[each.name] = getattr(other, each.name) if own is None else own
        found = Preprocessing(**values)
        if found.resize is not None and found.crop is not None and found.crop > found.resize:
            raise ValueError(
                f"images of preprocessing.resize={found.resize} pixels are smaller than "
                f"preprocessing.crop={found.crop}, and would get black borders; give both"
            )
        return found

    def transform(self, augment: bool) -> Callable[[Image.Image], Tensor]:
        """Return PIL image -> [3, crop, crop]; augmented as in training where asked."""
        mode = v2.InterpolationMode(self.interpolation)
        if augment:
            spatial = [
                v2.RandomResizedCrop(self.crop, interpolation=mode),
                v2.RandomHorizontalFlip(),
            ]
        elif self.crop_mode == "border":
            from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio

            fill: Any = [round(255 * level) for level in self.mean or ()]
            spatial = [
                ResizeKeepRatio(self.resize, longest=1.0, interpolation=self.interpolation),
                CenterCropOrPad(self.crop, fill=fill),
            ]
        else:
            size = [self.resize] * 2 if self.crop_mode == "squash" else self.resize
            spatial = [v2.Resize(size, interpolation=mode), v2.CenterCrop(self.crop)]
        to_tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
        found: Callable[[Image.Image], Tensor] = v2.Compose(
            [*spatial, *to_tensor, v2.Normalize(self.mean, self.std)]
        )
        return found


def own_preprocessing(model: VisionModel, weights: Any = None) -> Preprocessing:
    """Return what weights (torchvision's entry) expect, or the first published ones of model.

    Of timm's those that its published accuracies are measured on: many of its networks are tested
    on larger images than they were trained on.
    """
    if model.library == "torchvision":
        from torchvision.models import get_model_weights

        known = get_model_weights(model.name).__members__
        chosen = weights or next(iter(known.values()))  # the first published: IMAGENET1K_V1
        preset = chosen.transforms()
        return Preprocessing(
            preset.resize_size[0], preset.crop_size[0], preset.interpolation.value,
            preset.mean, preset.std,
        )  # fmt: skip
    from timm.data.config import resolve_data_config

    config = resolve_data_config(pretrained_cfg=model.build(1).pretrained_cfg, use_test_size=True)
    crop = config["input_size"][-1]
    resize = math.floor(crop / config["crop_pct"])  # as its create_transform does
    return Preprocessing(
        resize, crop, config["interpolation"], config["mean"], config["std"], config["crop_mode"]
    )


def torchvision_weights(model: VisionModel, source: str) -> Any:
    """Return torchvision's weights entry called source, or None where source is a file's name."""
    if model.library != "torchvision":
        return None
    from torchvision.models import get_model_weights

    known = get_model_weights(model.name)
    return known[source] if source in known.__members__ else None
