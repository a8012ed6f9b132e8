"""Data sets as `datasets` loads them; what it refuses becomes one line with the way out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def load_hub(
    path: str,
    config: str | None,
    split: str,
    files: dict[str, str] | None,
    local: Sequence[str],
    revision: str | None = None,
) -> Any:
    """Return a split of the hub's data set path; local are the files that stand in for it.

    Raises:
        ValueError: when it can't be had, with the way out.
    """
    way_out = (
        f"; without a network give a local folder with {', '.join(local)} (data_dir=PATH, "
        "calibration_dir=PATH)"
    )
    return loaded(
        f"{path} can't be loaded", way_out, path, config,
        data_files=files, split=split, revision=revision,
    )  # fmt: skip


def loaded(failed: str, way_out: str, *names: str | None, **options: Any) -> Any:
    """Return what `datasets.load_dataset` makes of names and options.

    Raises:
        ValueError: when it can't be had: failed, the reason and way_out in one line.
    """
    import datasets

    try:
        return datasets.load_dataset(*names, trust_remote_code=False, **options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # What stopped its making of a table is told by the cause alone.
        made = isinstance(error, datasets.exceptions.DatasetGenerationError)
        told = (made and error.__cause__) or error
        reason = (str(told).strip().splitlines() or [type(told).__name__])[0]
        raise ValueError(f"{failed}: {reason}{way_out}") from error
