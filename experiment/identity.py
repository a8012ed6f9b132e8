"""The identity of a run: what decides its value, and nothing of where that lay.

THE file that answers "what decides a run's id". A run is named by a hash of its settings, once

- settings that say where and how it works are left out (`NOT_IDENTITY`), and those that do nothing
  under what was chosen (`idle`);
- a class of ours is called by its name, not by its module, so that a file may move; one of a plugin
  by its whole path, since two packages may have classes of one name;
- a file or folder is called by the digest of what it holds (`content.py`), a network of the hub by
  its id and revision.

Other weights under the same words are therefore another run, the same weights elsewhere the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf, open_dict

from experiment.build import OURS
from experiment.content import Contents
from experiment.finetuned import (
    FINETUNED,
    check_origin,
    finetuned_folder,
    network_digest,
    uses_finetuned,
)
from experiment.idle import idle_in
from experiment.resolvers import _source_name
from experiment.versions import with_versions
from results.records.given import SURROUNDINGS
from results.records.off import GROUPS, OPTIONS, is_off
from tasks.language.hub import pinned

# Settings that say where and how a run works, not what it computes (the folders of data stand again
# where the task takes them, by their content), and those of which what takes them has the values.
NOT_IDENTITY = (
    *SURROUNDINGS, "idle", "scale", "recipe", "task.divergence", "clipping", "act_init_samples",
    "act_ranges_from",
)  # fmt: skip
# Keys of paths of data, wherever in the settings, and beside them which of the files are read.
IMAGES, TASKS, FILES = "root", "include_path", ("files", "folder")
DATA = ("local", TASKS)
FULL_STREAMS = OPTIONS["stream_dtype"]
# Said by nothing: ranges that stay as they were set, where nothing of them is learned.
UNSAID = {"recon.act_steps": "start"}


def identity(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings that can change the run's value, as plain values.

    Networks of the hub are pinned in cfg.

    Raises:
        ValueError: when a file changes while it is read, or the fine-tuned network that is asked
            for was made from another one than model.source names.
    """
    pin(cfg)
    return identity_of(plain(cfg))


def identity_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what identity returns, of a pinned configuration as plain values, which are used up.

    Raises:
        ValueError: as identity does.
    """
    contents = Contents(Path(settings["cache_dir"], "digests"))
    if uses_finetuned(settings):
        check_origin(settings, contents)
    return with_versions(reduced(settings, contents))


def pin(cfg: DictConfig) -> None:
    """Give the networks of the hub in cfg the revision that they have here."""
    if "source" not in cfg.model:  # no transformer
        return
    kept = Path(cfg.cache_dir, "revisions")
    with open_dict(cfg):
        cfg.model.source = pinned(cfg.model.source, kept)
        if cfg.checkpoint not in (None, FINETUNED):
            cfg.checkpoint = pinned(cfg.checkpoint, kept)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return cfg as plain values."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def reduced(settings: dict[str, Any], contents: Contents) -> dict[str, Any]:
    """Return plain settings as those that name a run; settings are used up."""
    if uses_finetuned(settings):
        found = contents.network(finetuned_folder(settings))
        settings["checkpoint"] = found or FINETUNED
    elif settings["checkpoint"] is not None:
        settings["checkpoint"] = network_digest(settings["checkpoint"], contents)
    del settings["finetuned"]
    model = settings["model"]
    for name in ("source", "weights"):
        if settings["checkpoint"] is not None and name in model:
            model[name] = None  # of another network than the one at hand
    if model.get("source") is not None:
        called = _source_name(model["source"])
        model["source"] = network_digest(model["source"], contents)
        if model["name"] == called:
            del model["name"]  # says where the network lies once more
    if isinstance(settings.get("bits_per_layer"), dict):
        settings["bits_per_layer"] = _in_order(settings["bits_per_layer"])
    idle = [option for options in idle_in(settings).values() for option in options]
    for path in (*NOT_IDENTITY, *idle):
        node, last = _holder(settings, path)
        node.pop(last, None)
    for path in (*OPTIONS, *GROUPS):
        node, last = _holder(settings, path)
        if is_off(path, node.get(last)):
            node.pop(last, None)
    for path, value in UNSAID.items():
        node, last = _holder(settings, path)
        if node.get(last) == value:
            del node[last]
    return cast(dict[str, Any], _canonical(with_digests(settings, contents)))


def _in_order(bits: dict[Any, int]) -> dict[str, int] | list[list[Any]]:
    """Return bits_per_layer as pairs where their order, which decides, is not the alphabet's.

    A run is named by its settings in the order of their names.
    """
    named = {str(pattern): own for pattern, own in bits.items()}
    return named if list(named) == sorted(named) else [list(pair) for pair in named.items()]


def _holder(settings: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """Return the node of settings that the option at path stands in, and its name there."""
    *parents, last = path.split(".")
    for key in parents:
        settings = settings.get(key) or {}
    return settings, last


def run_id(settings: dict[str, Any]) -> str:
    """Return the name of a run: a hash of its settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def places(cfg: DictConfig) -> dict[str, str]:
    """Return what cfg calls the files and folders that its identity has by their content."""
    settings = plain(cfg)
    named = {
        "checkpoint": settings["checkpoint"],
        "model.source": settings["model"].get("source"),
        **dict(data_paths(settings)),
    }
    return {name: str(value) for name, value in named.items() if value is not None}


def data_paths(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the paths of data in settings, by dotted name."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from data_paths(value, f"{prefix}{key}.")
        elif key in (IMAGES, *DATA) and isinstance(value, str):
            yield prefix + key, value


def with_digests(node: dict[str, Any], contents: Contents) -> dict[str, Any]:
    """Return settings with the digest of every path of data in its place."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict) and key not in FILES:
            found[key] = with_digests(value, contents)
        elif key in (IMAGES, *DATA) and isinstance(value, str):
            path = Path(value).expanduser()
            if key == IMAGES:
                digest = contents.images(path)
            elif key == TASKS:
                digest = contents.tasks(path)
            else:
                digest = contents.data(path, node.get("files") or {}, node.get("folder") or "")
            found[key] = digest or value
        elif key not in FILES or all(node.get(name) is None for name in DATA):
            found[key] = value
    return found


def _class_name(target: str) -> str:
    """Return the name of a class of ours without its module, and the whole path of another."""
    return target.rpartition(".")[2] if target.partition(".")[0] in OURS else target


def _canonical(value: Any) -> Any:
    """Return value with 20.0 written as 20 and classes by their names."""
    if isinstance(value, dict):
        named = {k: _class_name(v) if k == "_target_" else v for k, v in value.items()}
        return {key: _canonical(entry) for key, entry in named.items()}
    if isinstance(value, list):
        return [_canonical(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
