"""Environment of the peers: made by --install, asked which of them it has."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.peers.comparisons import OURS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# By program: its distribution; torch and transformers are what it is compared on.
DISTRIBUTIONS = {
    "auto_round": "auto-round", "llm_compressor": "llmcompressor", "torch_ao": "torchao",
}  # fmt: skip
SHARED = ("torch", "transformers")
ASK = (
    "import json, sys\nfrom importlib.metadata import PackageNotFoundError, version\nfound = {}\n"
    "for name in sys.argv[1:]:\n    try:\n        found[name] = version(name)\n"
    "    except PackageNotFoundError:\n        found[name] = None\nprint(json.dumps(found))"
)


@dataclass(frozen=True)
class Environment:
    """The peers' Python.

    Attributes:
        folder: of the environment.
        versions: by distribution; None for what is not there.
    """

    folder: Path
    versions: dict[str, str | None]

    def python(self, program: str) -> str:
        """Return the interpreter that a program runs in."""
        return sys.executable if program == OURS else str(_python(self.folder))

    def missing(self, program: str) -> str | None:
        """Return how a program is installed, or None where it is there."""
        if program == OURS or self.versions.get(DISTRIBUTIONS[program]):
            return None
        return f"not installed: python -m benchmarks.peers --install {self.folder}"

    def version_of(self, program: str) -> str:
        """Return the version of a peer; ours is the checkout's."""
        return "" if program == OURS else str(self.versions.get(DISTRIBUTIONS[program]))


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def versions_of(python: str) -> dict[str, str | None]:
    """Return the versions that an interpreter has of the peers and of what they share with ours."""
    command = [python, "-c", ASK, *DISTRIBUTIONS.values(), *SHARED]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE)
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


def environment_at(folder: Path) -> Environment:
    """Return the environment in folder, an empty one where there is none.

    Raises:
        ValueError: when what is there is no environment.
    """
    python = _python(folder)
    if not folder.exists():
        return Environment(folder, {})
    if not python.is_file():
        raise ValueError(
            f"--environment {folder}: it has no bin/python; python -m benchmarks.peers --install "
            f"{folder} makes one in an empty folder"
        )
    try:
        return Environment(folder, versions_of(str(python)))
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise ValueError(f"--environment {folder}: its Python does not answer: {error}") from error


def install(folder: Path) -> None:
    """Make the environment in folder, by the interpreter that runs this.

    Raises:
        ValueError: when folder is not empty and no environment, or pip ends with an error.
    """
    python = _python(folder)
    if folder.exists() and any(folder.iterdir()) and not python.is_file():
        raise ValueError(f"--install {folder}: give a new or an empty folder")
    pip = [str(python), "-m", "pip", "install"]
    same = [f"{name}=={version(name).partition('+')[0]}" for name in SHARED]
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "-r", str(HERE / "requirements.txt"), *same],
        [*pip, "--no-deps", "-r", str(HERE / "requirements-alone.txt")],
    ):
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ValueError(f"--install {folder}: {error}") from error
