"""Images of ImageNet's folders, with class indices from the list of all classes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset


def class_list() -> list[str]:
    """Return the 1,000 WordNet ids in class order, from the list that timm ships."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None, "timm is a dependency"
    assert spec.submodule_search_locations is not None, "timm is a package"
    folder = Path(spec.submodule_search_locations[0]) / "data" / "_info"
    return (folder / "imagenet_synsets.txt").read_text().split()


class Images(Dataset[Any]):
    """Images below root/CLASS; their class indices come from the list of all classes."""

    def __init__(self, root: Path, classes: list[str], transform: Callable[..., Tensor]) -> None:
        """Find the images.

        Raises:
            ValueError: when a folder is none of the classes.
        """
        index = {name: i for i, name in enumerate(classes)}
        there = sorted(p.name for p in root.iterdir() if p.is_dir())
        unknown = [name for name in there if name not in index]
        if unknown:
            raise ValueError(
                f"imagenet_dir: folder {unknown[0]} in {root} is not one of the "
                f"{len(index)} ImageNet classes (WordNet ids such as n01440764)"
            )
        self._transform = transform
        self.samples: list[tuple[str, int]] = make_dataset(
            root, index, IMG_EXTENSIONS, allow_empty=True
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        """Return (image [3, height, width], label), or the message of one that can't be read.

        A worker process would bury an exception in its own traceback.
        """
        path, label = self.samples[index]
        try:
            return self._transform(_load_image(path)), label
        except ValueError as error:
            return str(error)


def stack(samples: list[Any]) -> Any:
    """Return a batch, or the first message in it."""
    return next((s for s in samples if isinstance(s, str)), None) or default_collate(samples)


def readable(loaded: Any) -> tuple[Tensor, Tensor]:
    """Return what `stack` made as (images, labels).

    Raises:
        ValueError: with the message, when an image of the batch can't be read.
    """
    if isinstance(loaded, str):
        raise ValueError(loaded)
    images, labels = loaded
    return images, labels


def _load_image(path: str) -> Image.Image:
    try:
        with open(path, "rb") as file:
            return Image.open(file).convert("RGB")
    except Exception as error:  # whatever a damaged file leads PIL to: SyntaxError, IndexError, ...
        told = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"image {path} cannot be read ({told}); replace or remove it") from error
