"""Source code that computes a run: a digest that tells two states of it apart, and its commit.

A commit alone says nothing of a working tree with changes, of an installation without git, or of a
method in a package of one's own.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiment import ROOT

COMPUTING = ("experiment", "flexround", "tasks")  # what a value depends on
WATCHED = (*COMPUTING, "results", "hydra_plugins", "conf", "run.py", "finetune.py", "artifact.py")


def code_of(cfg: DictConfig) -> str:
    """Return a digest of the code that computes cfg: ours, and the packages of its classes."""
    return digest(tuple(sorted({*COMPUTING, *_packages(OmegaConf.to_container(cfg))})))


@functools.cache  # of the code that was loaded, however many runs it serves
def digest(packages: Sequence[str] = COMPUTING) -> str:
    """Return a digest of the Python files of packages."""
    found = hashlib.sha256()
    for package in packages:
        for name, path in _files(package):
            found.update(f"{package} {name} {path.stat().st_size}\n".encode())
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


@functools.cache
def commit() -> str | None:
    """Return the commit of this checkout; None without git.

    Where files of the code differ from it, +DIGEST follows, of the differences and of new files.
    """
    try:
        head = _git("rev-parse", "--short=12", "HEAD").decode().strip()
        changed = _git("diff", "HEAD", "--binary", "--no-ext-diff", "--", *WATCHED)
        new = _git("ls-files", "--others", "--exclude-standard", "-z", "--", *WATCHED)
        names = [name for name in new.decode(errors="surrogateescape").split("\0") if name]
        if not changed and not names:
            return head
        difference = hashlib.sha256(changed)
        for name in names:
            difference.update(name.encode(errors="surrogateescape"))
            difference.update(ROOT.joinpath(name).read_bytes())
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}+{difference.hexdigest()[:8]}"


def _git(*words: str) -> bytes:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, check=True).stdout


def _files(package: str) -> Iterator[tuple[str, Path]]:
    """Yield (name, path) of the Python files of a package or module, in order of their names."""
    roots = [ROOT / package]
    if not roots[0].is_dir():
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            return
        if spec is None:
            return
        if spec.submodule_search_locations is None:  # a module of one file
            if spec.origin is not None:
                yield Path(spec.origin).name, Path(spec.origin)
            return
        roots = [Path(folder) for folder in spec.submodule_search_locations]
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            yield path.relative_to(root).as_posix(), path


def _packages(node: Any) -> Iterator[str]:
    """Yield the package of every class in a configuration."""
    if isinstance(node, dict):
        if isinstance(target := node.get("_target_"), str):
            yield target.partition(".")[0]
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _packages(value)
