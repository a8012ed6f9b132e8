"""Networks and tokenizers of the Hugging Face library, from a hub id or from this disk."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from flexround.models.checkpoint_shards import Shards
from flexround.utils.atomic_files import written_folder
from flexround.utils.file_errors import number_of
from tasks.first_use import first_use, not_kept
from tasks.language.hub import split_revision
from tasks.language.network_files import (
    check_size,
    check_vocabulary,
    check_weights,
    config_of,
    told,
)
from tasks.package_files import PACKAGE, path_of

log = logging.getLogger(__name__)

T = TypeVar("T")

PARTS = ["*.safetensors", "*.json", "*.txt", "*.model"]  # of a hub's model, what outline needs
# Folders of networks that could not be kept, whose weights may be read until the process ends.
ELSEWHERE: list[tempfile.TemporaryDirectory[str]] = []


class Place(NamedTuple):
    """Where a network is: a folder or hub id, with its revision, and the GGUF file in it."""

    where: str
    gguf: str | None = None
    revision: str | None = None


def locate(source: str) -> Place:
    """Return where the network called source is.

    Raises:
        ValueError: when a package or path is not there.
    """
    path = path_of(source)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"{source}: no such GGUF file")
        return Place(str(path.parent), path.name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{source}: a folder without config.json is no model")
        return Place(str(path))
    if source.startswith(PACKAGE) or path.is_absolute() or source.startswith("."):
        raise ValueError(f"{source}: no such folder; give a hub id, a local folder or a .gguf file")
    return Place(split_revision(source)[0], None, split_revision(source)[1])


def load(auto: Any, source: str, head: dict[str, Any] | None = None) -> tuple[nn.Module, Any]:
    """Return (network in float32 or its own half precision, tokenizer) of source.

    auto is transformers' AutoModelFor... class of the task; head are settings of its config, given
    when a head is to be made: the network may then be missing that, and nothing else.

    Raises:
        ValueError: when the source can't be had or read, lacks a weight, or model and tokenizer do
            not match.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity(logging.CRITICAL)  # it would warn of the head that is to be made
    where, gguf, revision = locate(source)
    options: dict[str, Any] = {"revision": revision} if revision else {}
    options |= {"gguf_file": gguf} if gguf else {}
    local = Path(where).is_dir()
    advice = "" if local else "; without a network give a local folder: model.source=PATH"
    with told(source, advice):
        config = config_of(where, **options)
        if local:
            check_size(auto, config, Path(where, gguf or ""))
        network, report = auto.from_pretrained(
            where,
            **options,
            **({"dtype": "float32"} if gguf else {}),
            **({"config": config} if gguf and head is None else {}),
            **(head or {}),
            ignore_mismatched_sizes=head is not None,  # a head to be made may have been another's
            output_loading_info=True,
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **options)
    check_weights(network, report, source, makes_head=head is not None)
    check_vocabulary(network, tokenizer, source)
    return network, tokenizer


class _Hollow(TorchFunctionMode):
    """Makes what layers take for their weights, torch.empty, without storage, and nothing else.

    Under torch.device("meta") buffers such as rotary frequencies would lose their values.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return func's result."""
        hollow = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **((kwargs or {}) | hollow))


def outline(auto: Any, source: str) -> tuple[nn.Module, Any, Shards]:
    """Return (network whose weights are on the meta device, tokenizer, the weights' files).

    auto and source are those of `load`; buffers hold their values.

    Raises:
        ValueError: when source is not there, no safetensors checkpoint, or lacks a file.
    """
    from huggingface_hub import snapshot_download
    from transformers import AutoTokenizer

    where, gguf, revision = locate(source)
    if gguf is not None:
        raise ValueError(f"{source}: offload=true reads safetensors, not GGUF; give offload=false")
    with told(source):
        if not Path(where).is_dir():
            where = snapshot_download(where, revision=revision, allow_patterns=PARTS)
        config = config_of(where)
        check_size(auto, config, Path(where))
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    shards = Shards(where)
    with told(source), _Hollow():
        network = auto.from_config(
            config, dtype=config.dtype or shards.dtype, trust_remote_code=False
        )
    hollow = {n: torch.empty_like(t, device="meta") for n, t in network.state_dict().items()}
    network.load_state_dict(hollow, assign=True)
    network.tie_weights()
    shards.prefix = network.base_model_prefix
    check_vocabulary(network, tokenizer, source)
    return network, tokenizer, shards


def hollow(auto: Any, source: str) -> nn.Module | None:
    """Return the network of the hub's source without its weights, by its configuration alone.

    None where source is no hub id, or its configuration can't be had: `load` tells why.
    """
    where, gguf, revision = locate(source)
    if gguf is not None or Path(where).exists():
        return None
    try:
        with told(source), torch.random.fork_rng(devices=[]), _Hollow():
            config = config_of(where, **({"revision": revision} if revision else {}))
            network: nn.Module = auto.from_config(config, trust_remote_code=False)
    except ValueError as error:
        log.debug("%s is not looked at before it is fetched: %s", source, error)
        return None
    return network


def bare(auto: Any, folder: Path) -> tuple[nn.Module, Any]:
    """Return (network with weights that mean nothing, tokenizer) of a folder without weights.

    Raises:
        ValueError: when the folder does not describe a network that auto can make.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity(logging.CRITICAL)
    with told(str(folder)):
        config = config_of(str(folder))
        check_size(auto, config, folder)
        with torch.random.fork_rng():
            network = auto.from_config(config, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return network.eval(), tokenizer


def save(network: Any, tokenizer: Any, folder: Path, facts: dict[str, Any] | None = None) -> None:
    """Write network, tokenizer and facts (finetune.json) as folder, whole or not at all."""
    with written_folder(folder) as part:
        network.save_pretrained(part)
        tokenizer.save_pretrained(part)
        if facts is not None:
            (part / "finetune.json").write_text(json.dumps(facts, indent=2))


def read_or_make(folder: Path, read: Callable[[Path], T], make: Callable[[], tuple[Any, Any]]) -> T:
    """Return what read finds in folder, where make's (network, tokenizer) is saved.

    It is made on first use, and again where it is damaged; a second process waits for the first.
    Where it can't be kept, read gets a folder that is gone with the process.

    Raises:
        OSError: when what is there can't be read.
        ValueError: what read refuses of a sound folder.
    """
    if folder.is_dir() and (found := _read(folder, read, tell=False)):
        return found[0]
    with first_use(folder) as kept:
        if kept and folder.is_dir() and (found := _read(folder, read, tell=True)):
            return found[0]
        made = make()
        if kept:
            try:
                save(*made, folder)
            except Exception as error:
                not_kept(folder, error)
            else:
                return read(folder)
    ELSEWHERE.append(tempfile.TemporaryDirectory())
    elsewhere = Path(ELSEWHERE[-1].name, folder.name)
    save(*made, elsewhere)
    return read(elsewhere)


def _read(folder: Path, read: Callable[[Path], T], tell: bool) -> tuple[T] | None:
    """Return what read finds in folder, None where that is damaged."""
    try:
        return (read(folder),)
    except Exception as error:
        if number_of(error) is not None or is_sound(folder):
            raise  # it can't be read, or it is the reader that it does not fit
        if tell:
            log.warning("cached %s is damaged and made again: %s", folder, error)
        return None


def is_sound(folder: Path) -> bool:
    """Return whether folder holds a model that can be read, whatever it is for."""
    from transformers import AutoModel

    try:
        load(AutoModel, str(folder), {})
    except ValueError:
        return False
    return True
