"""Ids of the Hugging Face hub with the revision that they stand for: ORG/NAME@REVISION."""

from __future__ import annotations

import json
import logging
import re
from functools import cache
from pathlib import Path

from flexround.utils.atomic_files import write_whole
from tasks.package_files import PACKAGE

log = logging.getLogger(__name__)

ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")  # without a revision


def split_revision(source: str) -> tuple[str, str | None]:
    """Return (hub id, its revision or None) of ORG/NAME@REVISION."""
    name, _, revision = source.partition("@")
    return name, revision or None


def pinned(source: str, kept: Path) -> str:
    """Return the hub id source with the revision that it has had here from its first use on.

    The revision is asked for once and kept in the folder kept, so that neither a change on the hub
    nor a machine without a network makes another network of the same words. What is no hub id, or
    is one whose revision can't be had, comes back as it is.
    """
    if not ID.fullmatch(source) or source.startswith(PACKAGE) or Path(source).expanduser().exists():
        return source
    file = kept / f"{source.replace('/', '--')}.json"
    try:
        kept_revision = json.loads(file.read_text())["revision"]
        if not isinstance(kept_revision, str):
            raise TypeError("a revision is a text")
        return f"{source}@{kept_revision}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        revision = _newest(source)
    if revision is None:
        return source
    try:
        kept.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps({"revision": revision}).encode())
    except OSError as error:
        log.warning("the revision of %s is not kept: %s (%s)", source, error.strerror, kept)
    return f"{source}@{revision}"


@cache
def _newest(source: str) -> str | None:
    """Return the commit of source's main branch: this machine's copy, or else the hub's."""
    try:
        from huggingface_hub import HfApi, constants
    except ModuleNotFoundError:
        return None
    folder = Path(constants.HF_HUB_CACHE, f"models--{source.replace('/', '--')}")
    copy = folder / "refs" / "main"
    if copy.is_file():
        return copy.read_text().strip() or None
    if constants.HF_HUB_OFFLINE:
        return None
    try:
        return HfApi().model_info(source, timeout=10).sha
    except Exception as error:  # whatever it is, loading the network tells it better
        log.debug("no revision of %s: %s", source, error)
        return None
