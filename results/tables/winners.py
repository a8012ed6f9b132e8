"""Winners of searches as YAML, which later runs take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from flexround.utils.atomic_files import write_whole
from results.tables.search import Searched, check_budgets, check_choice, counted

PACKAGE, SEARCHED = "# @package _global_", "# Trial"


def write_winners(found: Sequence[Searched], folder: Path) -> list[Path]:
    """Write the winners as folder/TASK_MODEL_METHOD.yaml, as conf/tuned/pair has them.

    Of a file that is there what was not searched stays, which the trials had too: its settings, and
    the lines above them that say where they are from.

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
        texts[path] = (one.search.name, _yaml(one, one.best, path))
    for path, (_, text) in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    return list(texts)


def _yaml(one: Searched, best: int, path: Path) -> str:
    """Return the file at path with the values of a search's best trial."""
    values = one.search.trials[best].values
    settings, above = DictConfig({}), list[str]()
    if path.exists():
        settings = cast(DictConfig, OmegaConf.load(path))
        lines = path.read_text().splitlines()
        above = [x for x in lines if x.startswith("#") and not x.startswith((PACKAGE, SEARCHED))]
    for name, value in values.items():
        OmegaConf.update(settings, name, value)
    told = f"{best} of the {len(one.search.trials)} of {one.search.name}, by its held-out error"
    head = [PACKAGE, *above, f"{SEARCHED} {told}: {', '.join(values)}."]
    return "\n".join(head) + f"\n{OmegaConf.to_yaml(settings)}"
