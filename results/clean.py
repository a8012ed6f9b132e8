"""Clean: the leftovers of killed runs as a list with sizes, removed when told to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flexround.utils.arguments import ArgumentParser
from results.records.leftovers import Leftover, leftovers

UNITS = ("B", "kB", "MB", "GB", "TB")


def command(
    argv: Sequence[str], results: Path, cache: Path, networks: Path, example: str = ""
) -> str:
    """Do what `python -m results clean` says; the next three are the folders by default.

    Raises:
        ValueError: for a folder that is none, or what can't be removed.
    """
    parser = ArgumentParser(
        prog="python -m results clean",
        description="List what killed runs have left: parts of files, claims of the dead,\n"
        "checkpoints of finished runs. Nothing of a run at work, or of one that can go on.",
        examples=[example] if example else [],
    )
    parser.add_argument(
        "--results-dir", type=Path, default=results, metavar="PATH", help="folder of the records"
    )
    parser.add_argument(
        "--cache-dir", type=Path, default=cache, metavar="PATH", help="the runs' cache"
    )
    parser.add_argument(
        "--checkpoints-dir", type=Path, default=networks, metavar="PATH",
        help="folder of fine-tuned networks",
    )  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="remove it")
    parser.add_argument(
        "--damaged", action="store_true", help="damaged files that were set aside as well"
    )
    args = parser.parse_args(argv)
    for option, folder, default in (
        ("--results-dir", args.results_dir, results), ("--cache-dir", args.cache_dir, cache),
        ("--checkpoints-dir", args.checkpoints_dir, networks),
    ):  # fmt: skip
        if folder != default and not folder.is_dir():
            raise ValueError(f"{option} {folder} is no folder; give the one that run.py was given")
    folders = (args.results_dir, args.cache_dir, args.checkpoints_dir)
    return clean(folders, args.yes, args.damaged)


def clean(folders: tuple[Path, Path, Path], yes: bool, damaged: bool) -> str:
    """Return what there is, or with yes what has been removed.

    folders are those of the records, of the cache and of fine-tuned networks.

    What was set aside as damaged is somebody's to look at: it is listed, and goes with damaged.

    Raises:
        ValueError: when something can't be removed; names it.
    """
    found = leftovers(*folders)
    aside = [one for one in found if one.damaged and not damaged]
    left = [one for one in found if one not in aside]
    if not found:
        return "nothing is left of killed runs in {}, {} and {}".format(*folders)
    kept = []
    if aside:
        kept = [f"set aside, removed with --damaged: {_total(aside)}", *_lines(aside)]
    if not left:
        return "\n".join(kept)
    if not yes:
        return "\n".join([f"left: {_total(left)}; --yes removes it", *_lines(left), *kept])
    removed = []
    for one in left:
        try:
            if one.remove():
                removed.append(one)
        except OSError as error:
            raise ValueError(
                f"{one.path} can't be removed ({error.strerror}); {len(removed)} of {len(left)} are"
            ) from error
    return "\n".join([f"removed: {_total(removed)}", *_lines(removed), *kept])


def _lines(found: Sequence[Leftover]) -> list[str]:
    return [f"  {_size(one.bytes):>9}  {one.path}  ({one.what})" for one in found]


def _total(found: Sequence[Leftover]) -> str:
    return f"{len(found)}, {_size(sum(one.bytes for one in found))}"


def _size(count: int) -> str:
    """Return bytes in the largest unit of which there is one."""
    value, index = float(count), 0
    while value >= 1000 and index < len(UNITS) - 1:
        value, index = value / 1000, index + 1
    return f"{value:.0f} {UNITS[index]}" if index == 0 else f"{value:.1f} {UNITS[index]}"
