"""Winners of searches as YAML, which later runs take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flexround.utils.atomic_files import write_whole
from results.records.selection import flatten, spelled
from results.tables.search import Searched, check_budgets, check_choice, counted

PACKAGE = "# @package _global_"


def write_winners(found: Sequence[Searched], folder: Path) -> list[Path]:
    """Write the winners as folder/TASK_MODEL_METHOD.yaml, as conf/tuned/pair has them.

    Of a file that is there every line stays but those of what was searched.

    Raises:
        ValueError: when the searches are not fair, two settings' winners would be one file, or the
            trials had other values of what a file has besides.
    """
    found = counted(found)
    for one in found:
        check_choice(one)
    check_budgets(found)
    texts: dict[Path, tuple[str, str]] = {}
    for one in found:
        record = None if one.best is None else one.records[one.best]
        if record is None or one.best is None:
            continue
        if "/" in record.model:
            raise ValueError(
                f"{one.search.name}: {record.model} is a model of the hub without a file in "
                "conf/model, so that no run would take the winner; give --where model=NAME"
            )
        path = folder / f"{record.task}_{record.model}_{record.quant}.yaml"
        if path in texts:
            raise ValueError(
                f"{path}: {texts[path][0]} and {one.search.name} are of one task, model and "
                "method; give --where bits=N and the like to choose one"
            )
        texts[path] = (one.search.name, _text(one, one.best, flatten(record.settings), path))
    for path, (_, text) in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    return list(texts)


def _text(one: Searched, best: int, had: Mapping[str, Any], path: Path) -> str:
    """Return the file at path with the values of a search's best trial, whose settings are had.

    Raises:
        ValueError: when the trials had other values of what was not searched.
    """
    values = one.search.trials[best].values
    lines = path.read_text().splitlines() if path.exists() else [PACKAGE]
    stated: Any = OmegaConf.to_container(OmegaConf.create("\n".join(lines)))
    for name, value in flatten(stated or {}).items():
        free = name in values or name not in had or "${" in str(value)
        if not free and spelled(had[name]) != spelled(value):
            raise ValueError(
                f"{path} has {name}={value}, and the trials of {one.search.name} {had[name]}; "
                "search under the file's, take that line out of it, or give another folder"
            )
    trial = f"trial {best} of the {len(one.search.trials)} of {one.search.name}"
    for name, value in values.items():
        group, _, key = name.partition(".")
        if f"{group}:" not in lines:
            lines.append(f"{group}:")
        at = lines.index(f"{group}:") + 1
        end = next((i for i in range(at, len(lines)) if lines[i][:1].strip()), len(lines))
        own = [i for i in range(at, end) if lines[i].startswith(f"  {key}:")]
        lines[slice(own[0], own[0] + 1) if own else slice(at, at)] = [
            f"  {key}: {value:g}  # {trial}, by its held-out error"
        ]
    return "\n".join(lines) + "\n"
