"""Environment variables in a configuration, ${oc.env:NAME}: where they may stand.

Their values are this machine's, and some are secrets. What a record keeps of a run goes to pages,
cards and wandb, so that they may stand only in options of which nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.resolvers import oc

# Folders of this machine that no record names.
LOCAL = ("results_dir", "cache_dir", "spill_dir", "logger.dir", "task.cache_dir")
MARK = "<of the environment>"


def check_environment(cfg: DictConfig) -> None:
    """Check that no option of which a record keeps something is made from the environment.

    Raises:
        ValueError: names the option, and how to give it its value.
    """
    if not any("oc." in text or "env" in text for text in _texts(OmegaConf.to_container(cfg))):
        return
    OmegaConf.register_new_resolver("oc.env", lambda *_: MARK, replace=True)
    try:
        marked = dict(_leaves(cfg))
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
    plain = dict(_leaves(cfg))
    # A number, say, can't be the mark: it fails with it and not without.
    kept = [
        name for name, value in marked.items()
        if name not in LOCAL and (_is_marked(value) or (_fails(value) and not _fails(plain[name])))
    ]  # fmt: skip
    if kept:
        name = min(kept, key=lambda name: name.count("."))  # what the others are made from
        raise ValueError(
            f"{name} is made from an environment variable, and records keep what it is; let the "
            f'shell put in a value that others may see: {name}="$NAME" for ${{oc.env:NAME}}'
        )


def _is_marked(value: Any) -> bool:
    return any(MARK in text for text in _texts(str(value) if _fails(value) else value))


def _fails(value: Any) -> bool:
    return isinstance(value, Exception)


def _texts(plain: Any) -> Iterator[str]:
    """Yield every text in plain values."""
    if isinstance(plain, dict | list):
        for value in plain.values() if isinstance(plain, dict) else plain:
            yield from _texts(value)
    elif isinstance(plain, str):
        yield plain


def _leaves(cfg: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every option; the error where there is no value."""
    for key in cfg:
        name = f"{prefix}{key!s}"
        try:
            value = cfg[key]
            if isinstance(value, ListConfig):
                value = OmegaConf.to_container(value, resolve=True)
        except Exception as error:  # of a resolver, whichever it is
            yield name, error
            continue
        if isinstance(value, DictConfig):
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value
