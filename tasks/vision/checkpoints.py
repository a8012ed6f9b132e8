"""Checkpoint files of vision networks: local files and files inside installed packages.

No code in a checkpoint runs: safetensors, or torch.load with weights_only, for tensors alone.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import struct
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor, nn

from flexround.models.vision import VisionModel
from flexround.utils.atomic_files import sweep, write_whole
from flexround.utils.file_errors import number_of, read_bytes
from tasks.package_files import path_of

log = logging.getLogger(__name__)

# What torch.load and safetensors raise on bytes that are no file of theirs.
UNREADABLE = (
    SafetensorError, RuntimeError, EOFError, LookupError, TypeError, AttributeError, ValueError,
    MemoryError, ArithmeticError, struct.error, AssertionError, NotImplementedError,
)  # fmt: skip
KINDS = (
    "a torchvision weights name such as IMAGENET1K_V1, a local .safetensors, .pth or .pt file, "
    "or package:NAME/FILE for a file inside an installed package"
)


def save(network: nn.Module, path: Path) -> None:
    """Write network's state dict to path as safetensors, whole or not at all."""
    sweep(path)
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    data = serialize(state)
    # Its digest first: alone it says nothing, while a network without one counts as damaged.
    write_whole(digest_of(path), hashlib.sha256(data).hexdigest().encode())
    write_whole(path, data)


def digest_of(path: Path) -> Path:
    """Return where the digest of a saved file lies."""
    return path.with_suffix(".sha256")


def sha256(path: Path) -> str:
    """Return the file's SHA-256 in hexadecimal."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def check_digest(path: Path) -> None:
    """Check that a file is still as `save` left it.

    Raises:
        OSError: when it can't be read.
        ValueError: when it is not, or its digest is missing.
    """
    try:
        digest = read_bytes(digest_of(path)).decode(errors="replace")
    except FileNotFoundError:
        digest = ""
    if digest != sha256(path):
        raise ValueError(f"checkpoint {path} is damaged: it is not the file that was saved")


def locate(source: str) -> Path:
    """Return the file that source names.

    Raises:
        ValueError: when the package or the file is not there.
    """
    path = path_of(source)
    if not path.is_file():
        raise ValueError(f"checkpoint={source}: no such file; give {KINDS}")
    return path


def read(path: Path) -> dict[str, Tensor]:
    """Return the state dict in path.

    Raises:
        ValueError: when the file is damaged, or a pickle that would run code.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint {path} is no file of tensors alone (damaged, or a pickle that would run "
            "code when loaded); save a plain state dict or safetensors"
        ) from error
    except (OSError, *UNREADABLE) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        if number_of(error) is not None:
            raise ValueError(f"checkpoint {path} can't be read ({told})") from error
        raise ValueError(f"checkpoint {path} is damaged or truncated ({told})") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"checkpoint {path} holds no state dict (names mapped to tensors)")
    return state


def load_into(network: nn.Module, source: str, model: VisionModel) -> nn.Module:
    """Return network with the weights of the file that source names, in eval mode.

    A file whose tensors have other names but, in order, the same shapes is taken in order.

    Raises:
        ValueError: when the file belongs to another architecture or head.
    """
    path = locate(source)
    state = read(path)
    own = network.state_dict()
    if state.keys() != own.keys():
        state = _by_order(own, state, path, model)
    wrong = [name for name in own if state[name].shape != own[name].shape]
    if wrong:
        raise ValueError(
            f"checkpoint {path} is not of {model.name}: {wrong[0]} is "
            f"{list(state[wrong[0]].shape)} there and {list(own[wrong[0]].shape)} in the model"
        )
    network.load_state_dict(state)
    return network.eval()


def _by_order(
    own: dict[str, Tensor], state: dict[str, Tensor], path: Path, model: VisionModel
) -> dict[str, Tensor]:
    # Counters of seen batches take no part in inference and some exporters leave them out.
    named = {name: t for name, t in own.items() if not name.endswith("num_batches_tracked")}
    given = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    if named.keys() <= given.keys():
        unknown = sorted(given.keys() - named.keys())
        if not unknown:
            return own | given
        raise ValueError(f"checkpoint {path} is not of {model.name}: the model has no {unknown[0]}")
    shapes = [t.shape for t in given.values()]
    if shapes != [t.shape for t in named.values()]:
        missing = sorted(named.keys() - given.keys())
        raise ValueError(
            f"checkpoint {path} is not of {model.name}: it has no {missing[0]} "
            f"({len(missing)} of {len(named)} tensors are missing)"
        )
    log.info("checkpoint %s uses other names; its %d tensors fit in order", path, len(given))
    return own | dict(zip(named, given.values(), strict=True))
