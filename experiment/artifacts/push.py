"""Push of an artifact to the Hugging Face hub: `python artifact.py push PATH --to ORG/NAME`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiment.artifacts.front_matter import fields
from experiment.artifacts.model_card import model_card
from flexround.artifact.artifact import Artifact
from flexround.artifact.file_format import read
from flexround.artifact.header import PICKLES, locate
from results.records.record import Record
from tasks.language.hub import ID

CARD = "README.md"
FENCE = "---\n"
TRANSPORTS = ("httpx", "httpcore", "requests", "urllib3")  # whichever huggingface_hub has


@dataclass(frozen=True)
class Parcel:
    """What goes to the hub: the files of a folder, and its card as it goes."""

    folder: Path
    files: Sequence[Path]
    card: str

    def listed(self) -> str:
        """Return the files with their sizes, one a line, and the card's front matter."""
        rows = [f"  {size:>14,}  {path}" for path, size in self._sizes()]
        total = sum(size for _, size in self._sizes())
        head = self.card[len(FENCE) :].partition(FENCE)[0].rstrip()
        return "\n".join(
            [f"{len(rows)} files, {total:,} bytes:", *rows, f"front matter of {CARD}:", head]
        )

    def _sizes(self) -> list[tuple[Path, int]]:
        card = len(self.card.encode())
        return [
            (p, card if str(p) == CARD else (self.folder / p).stat().st_size) for p in self.files
        ]


def push(path: str, to: str, *, private: bool, license: str | None, dry_run: bool) -> str:
    """Send the artifact at path to the hub's repository to; return what was sent, or would be.

    license, a name of the hub's, stands in the card for what its front matter has.

    Raises:
        ValueError: when the artifact is damaged, or to is no name; when nobody is logged in, the
            hub can't be reached or refuses it.
    """
    if not ID.fullmatch(to) or to.count("/") != 1:
        raise ValueError(f"--to {to}: give ORG/NAME, a repository of the hub")
    parcel = parcel_of(path, license)
    if dry_run:
        return f"to {to}{' (private)' if private else ''}, nothing is sent:\n{parcel.listed()}"
    return _sent(parcel, to, private)


def parcel_of(path: str, license: str | None = None) -> Parcel:
    """Return what of the artifact at path would go to the hub.

    Raises:
        ValueError: when it is damaged, states no run, or its folder holds a pickle.
    """
    artifact, folder = read(path), locate(path).parent
    found = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    files = [p.relative_to(folder) for p in found]
    files = [p for p in files if not any(part.startswith(".") for part in p.parts)]
    if odd := [p for p in files if p.suffix in PICKLES]:
        raise ValueError(
            f"{folder / odd[0]}: a pickle is none of an artifact's files; move it away"
        )
    card = folder / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    if not text.startswith(FENCE):  # of before cards had front matter
        text = model_card(artifact, _record(artifact, folder))
    if license is not None:
        text = _licensed(text, license)
    return Parcel(folder, sorted({*files, Path(CARD)}), text)


def _record(artifact: Artifact, folder: Path) -> Record:
    """Return the record that an artifact states.

    Raises:
        ValueError: when it states none.
    """
    held = artifact.facts.get("record")
    if not isinstance(held, dict):
        raise ValueError(f"artifact {folder} does not say what run made it, so it has no card")
    try:
        record = Record.from_json(held)
        fields(record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"artifact {folder} states a run that is none: {error}") from error
    return record


def _licensed(card: str, license: str) -> str:
    """Return card with license in its front matter."""
    head, fence, body = card[len(FENCE) :].partition(FENCE)
    try:
        held: Any = yaml.safe_load(head) if fence else None
    except yaml.YAMLError:
        held = None
    if not isinstance(held, dict):
        raise ValueError(f"{CARD} has damaged front matter; delete the file, and it is made anew")
    for name in ("license", "license_name", "license_link"):
        held.pop(name, None)
    text = yaml.safe_dump({"license": license} | held, sort_keys=False, allow_unicode=True)
    return f"{FENCE}{text}{FENCE}{body}"


def _sent(parcel: Parcel, to: str, private: bool) -> str:
    """Send parcel to the hub in one commit and return the repository's address.

    Raises:
        ValueError: when nobody is logged in, the hub can't be reached, or it refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if get_token() is None:
        raise ValueError(
            "push needs a token of the hub: `hf auth login`, or HF_TOKEN; --dry-run prints what "
            "would go"
        )
    api = HfApi()
    operations = [
        CommitOperationAdd(str(p), parcel.card.encode() if str(p) == CARD else parcel.folder / p)
        for p in parcel.files
    ]
    try:
        url = api.create_repo(to, private=private, exist_ok=True)
        api.create_commit(to, operations, commit_message="Quantized by flexround")
    except (OfflineModeIsEnabled, ConnectionError) as error:
        raise ValueError(_unreachable(error)) from error
    except HfHubHTTPError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"the hub refuses {to}: {reason}; is the token allowed to write?"
        ) from error
    except Exception as error:
        if not type(error).__module__.startswith(TRANSPORTS):
            raise
        raise ValueError(_unreachable(error)) from error
    return f"{url}: {len(parcel.files)} files"


def _unreachable(error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"the hub can't be reached ({reason}); --dry-run needs no network"
