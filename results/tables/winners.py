"""Winners of searches as YAML, which later runs take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flexround.utils.atomic_files import write_whole
from results.tables.search import Searched, check_budgets, check_choice, counted


def write_winners(found: Sequence[Searched], folder: Path) -> list[Path]:
    """Write the winners as folder/TASK_MODEL_METHOD.yaml, as conf/tuned/pair has them.

    Raises:
        ValueError: when the searches are not fair, or two settings' winners would be one file.
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
        texts[path] = (one.search.name, _yaml(one, one.best))
    for path, (_, text) in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    return list(texts)


def _yaml(one: Searched, best: int) -> str:
    groups: dict[str, list[str]] = {}
    for name, value in one.search.trials[best].values.items():
        group, _, key = name.partition(".")
        groups.setdefault(group, []).append(f"  {key}: {value:g}\n")
    said = (
        f"# Trial {best} of the {len(one.search.trials)} of {one.search.name}, "
        "by its held-out error.\n"
    )
    body = "".join(f"{group}:\n{''.join(lines)}" for group, lines in groups.items())
    return f"# @package _global_\n{said}{body}"
