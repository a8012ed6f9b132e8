"""Renaming of the records of an older version: `python -m results rekey`.

A record of schema 1 has modules and paths in its settings. Here classes keep their names alone, and
a path becomes the digest of what lies there, where that has not been touched since the run began;
elsewhere the path stays, and no new run is taken for the old one. What a run was called before
stays in its record, and the file of before goes to history/.
"""

from __future__ import annotations

import copy
import datetime
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiment import ROOT
from experiment.config import RENAMED
from experiment.content import Contents
from experiment.finetuned import finetuned_folder
from experiment.identity import FULL_STREAMS, data_paths, reduced, run_id
from flexround.utils.atomic_files import write_whole
from results.records.record import OLD, SCHEMA, Record
from results.records.store import MARK, Store

log = logging.getLogger(__name__)

# Which files these classes read before the configuration named them.
FILES = {
    "C4": {
        "train": ["en/c4-train.00000-of-01024.json.gz"],
        "validation": ["en/c4-validation.00000-of-00008.json.gz"],
    },
    "Squad": {"train": ["train-v1.1.json"], "validation": ["dev-v1.1.json"]},
}


def rekey(root: Path) -> str:
    """Rename the records in root and what belongs to them; return what was done in words.

    Raises:
        ValueError: when a run is at work there, or there is no such folder.
    """
    if not root.is_dir():
        raise ValueError(f"--results-dir {root}: no such folder")
    store = Store(root)
    old = {path: data for path in sorted(root.glob("*.json")) if (data := _old(path)) is not None}
    busy = [p.stem for p in root.glob("running/*.json") if store.claim(p.stem).seems_alive()]
    if old and busy:
        raise ValueError(f"run {busy[0]} is at work in {root}; rename when it has ended")
    renamed, words = 0, 0
    for path, data in old.items():
        try:
            made = renewed(data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s is no sound record and stays as it is: %r", path, error)
            continue
        _move(store, path, made)
        renamed += 1
        words += any(_has_path(made))
    write_whole(root / MARK, f"{SCHEMA}\n".encode())
    left = f", {words} of them with a path yet, where files have changed since" if words else ""
    return f"{renamed} records of {len(list(root.glob('*.json')))} renamed in {root}{left}"


def renewed(data: Mapping[str, Any]) -> Record:
    """Return a record of schema 1 as one of today.

    Raises:
        ValueError: when data is no record.
    """
    settings = copy.deepcopy(data["settings"])
    began = datetime.datetime.fromisoformat(data["started"]).timestamp()
    own = reduced(_completed(settings, data), Contents(Path("/nonexistent"), since=began))
    fresh = {"settings": own, "run_id": run_id(own), "schema": SCHEMA}
    return Record.from_json({**data, **fresh, "former_ids": [data["run_id"]]})


def _completed(settings: dict[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's settings with what `reduced` looks at and old records left out."""
    digest = settings.get("finetuned") or None
    given = dict(o.partition("=")[::2] for o in data.get("overrides") or [])
    settings["checkpoints_dir"] = given.get("checkpoints_dir", str(ROOT / "outputs/checkpoints"))
    settings.setdefault("stream_dtype", FULL_STREAMS)
    settings.setdefault("checkpoint", None)
    settings["idle"] = {}
    _name_files(settings)
    for before, after in RENAMED.items():
        group, _, name = before.partition(".")
        node = settings.get(group)
        if isinstance(node, dict) and name in node:
            node[after.partition(".")[2]] = node.pop(name)
    if isinstance(digest, str):
        facts = finetuned_folder(settings) / "finetune.json"
        same = facts.is_file() and hashlib.sha256(facts.read_bytes()).hexdigest()[:16] == digest
        if not same:  # no folder is the one: the digest of before is its name
            settings |= {"checkpoint": f"finetune.json:{digest}", "finetuned": False}
    settings.setdefault("finetuned", False)
    return settings


def _name_files(node: Any) -> None:
    if isinstance(node, dict):
        name = str(node.get("_target_")).rpartition(".")[2]
        if "local" in node and name in FILES:
            node.setdefault("files", FILES[name])
        for value in node.values():
            _name_files(value)


def _has_path(record: Record) -> list[str]:
    """Return the paths that the settings of a renamed record still have."""
    source = record.settings["model"].get("source")
    named = [record.settings.get("checkpoint"), source, *dict(data_paths(record.settings)).values()]
    return [v for v in named if isinstance(v, str) and v.startswith(("/", ".", "~"))]


def _old(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        log.warning("%s passed over: %s", path, error)
        return None
    return data if isinstance(data, dict) and data.get("schema") in OLD else None


def _move(store: Store, path: Path, made: Record) -> None:
    """Put the renamed record in the place of the one at path, and what belongs to it beside it.

    Cut off at any point, the same again goes on.
    """
    former = made.former_ids[0]
    there = store.peek(made.run_id)
    if there is None:
        store.write(made)
    elif there.started < made.started or (there.status, made.status) == ("failed", "ok"):
        store.write(made)  # the one that was there goes to history/
    for old, new in (
        (store.outcomes_path(former), store.outcomes_path(made.run_id)),
        (store.artifact(former), store.artifact(made.run_id)),
        (store.unfinished(former), store.unfinished(made.run_id)),
    ):
        if old.exists() and not new.exists():
            old.rename(new)
    history = store.root / "history"
    history.mkdir(exist_ok=True)
    path.rename(history / f"{former}.renamed.json")
