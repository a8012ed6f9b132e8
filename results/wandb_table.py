"""Records as a table of a wandb run."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flexround.utils.atomic_files import check_writable

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


Mode = Literal["offline", "online", "disabled"]


ROOM = 1 << 17  # bytes that a small run takes in wandb's folder
# What wandb copies artifacts to before they are uploaded: without it the user's home.
STAGING = "WANDB_DATA_DIR"
_staged = set[str]()  # the folders that were named here, not by the user
CONNECT = 20.0  # seconds until no answer counts as no network


def open_run(mode: Mode, dir: str, **options: Any) -> Any:
    """Return an opened wandb run; offline where mode is online and nobody answers.

    Raises:
        OSError: when there is no room for it in the folder dir.
        ValueError: when wandb asks for a login that is not there.
    """
    import wandb

    check_writable(Path(dir), ROOM)
    if os.environ.get(STAGING) in (None, *_staged):
        os.environ[STAGING] = str(Path(dir).absolute())
        _staged.add(os.environ[STAGING])
    settings = wandb.Settings(
        console="off",
        x_disable_stats=True,
        disable_git=True,
        save_code=False,
        silent=True,
        init_timeout=CONNECT,
    )
    try:
        run = wandb.init(
            mode=mode, dir=dir, resume="allow", reinit="finish_previous", settings=settings,
            **options,
        )  # fmt: skip
    except wandb.errors.CommError as error:
        log.warning("wandb does not answer (%s); logging offline", str(error).splitlines()[0])
        return open_run("offline", dir, **options)
    except wandb.errors.Error as error:
        raise ValueError(
            f"logger.mode={mode}: {str(error).splitlines()[0]}; "
            "log in with `wandb login`, or keep logger.mode=offline"
        ) from error
    for handler in logging.getLogger("wandb").handlers:
        # Its own log of debugging would print a traceback for every line that finds no room.
        handler.handleError = lambda record: None  # type: ignore[method-assign]
    return run


def push(table: pd.DataFrame, project: str, mode: Mode, dir: str) -> str:
    """Log the leaderboard as a table of one wandb run and return where it went.

    Raises:
        ValueError: when wandb asks for a login that is not there.
    """
    import wandb

    run = open_run(mode, dir, project=project, name="leaderboard", job_type="leaderboard")
    run.log({"leaderboard": wandb.Table(dataframe=table.astype(object).where(table.notna(), None))})
    where = str(run.url or run.dir)
    run.finish()
    return where
