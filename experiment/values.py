"""Values of a configuration: what every number and every text has to be, whatever option has it.

The schema says which type an option of the run has, BOUNDS its range; what a class is built from is
checked by its own signature and constructor. What is said here holds for all of them: a number is
finite and of a size that torch and numpy take, a text is one that can name a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flexround.api.rules import BITS
from flexround.utils.arguments import shown

INTEGER = 2**31 - 1  # a C int's largest: sizes and counts are handed to code that has no larger one
FLOAT = 3.4028234663852886e38  # float32's largest
GIB = 2.0**20
MOST_THREADS = 1024
# The smallest and the largest value of an option, both allowed; null is none of them.
BOUNDS: dict[str, tuple[float, float]] = {
    "bits": BITS, "act_bits": BITS, "act_stem_bits": BITS, "act_head_bits": BITS, "kv_bits": BITS,
    "model.first_last_bits": BITS,
    "num_samples": (1, INTEGER), "group_size": (1, INTEGER), "act_init_samples": (1, INTEGER),
    "seed": (0, 2**32 - 1),  # numpy's, which lm-eval and transformers seed as well
    "threads": (1, MOST_THREADS), "cache_gib": (0, GIB), "stream_gib": (0, GIB),
}  # fmt: skip
# Folders that a run writes to: a shell leaves their ~ alone, and so does Python.
FOLDERS = ("results_dir", "cache_dir", "checkpoints_dir", "spill_dir", "logger.dir")
PART, PATH = 255, 4095  # bytes of a file's name, and of a path, on the common file systems


def check_every_value(cfg: DictConfig) -> None:
    """Check each number and text of cfg but Hydra's own.

    Raises:
        ValueError: names the option, its value, and what is allowed.
    """
    settings = {str(key): cfg._get_node(key) for key in cfg if key not in ("hydra", "idle")}
    values = {key: _plain(node) for key, node in settings.items()}
    # Options by themselves first: what is built takes its values from them.
    for key in sorted(values, key=lambda key: isinstance(values[key], dict | list)):
        for name, value in _leaves(key, values[key]):
            check_value(name, value)


def check_value(name: str, value: Any) -> None:
    """Check one value.

    Raises:
        ValueError: when it is out of its bounds.
    """
    if name.endswith("._partial_") and value is not True:  # how a class is built is no choice
        raise ValueError(f"{name}={value}: there is no such option; leave it out")
    if isinstance(value, str):
        _check_text(name, value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check_number(name, value)


def _check_number(name: str, value: float) -> None:
    if not abs(value) <= FLOAT:  # nan is none of them
        raise ValueError(f"{name}={value}: give a finite number, within float32's range")
    kind = "a whole number" if isinstance(value, int) else "a number"
    last = name.rpartition(".")[2]
    known = BOUNDS.get(name) or (BOUNDS[last] if last == "seed" else None)
    low, high = known or ((-INTEGER, INTEGER) if isinstance(value, int) else (None, None))
    if low is not None and high is not None and not low <= value <= high:
        raise ValueError(f"{name}={value}: give {kind} from {low:.16g} to {high:.16g}")


def _check_text(name: str, value: str) -> None:
    told = f"{name}={value!r}"
    if not value.strip():
        raise ValueError(f"{told}: there is nothing in it; leave it out, or give it a value")
    if shown(value) != value:
        raise ValueError(f"{told} holds a character that can't be printed; give it without")
    parts = [len(part) for part in value.encode().split(b"/")]
    if max(parts) > PART or len(value.encode()) > PATH:
        raise ValueError(
            f"{name}={value[:40]}...: {len(value)} characters are too long for a file; give at "
            f"most {PART} bytes a name, {PATH} a path"
        )
    if value.startswith("~"):
        try:
            whole = Path(value).expanduser()
        except RuntimeError as error:
            raise ValueError(f"{told}: there is no such home; give the whole path") from error
        if name in FOLDERS:
            raise ValueError(f"{told}: ~ is not expanded here; give the whole path, {whole}")


def _plain(node: Any) -> Any:
    """Return the value of a node of the configuration, its interpolations resolved."""
    if node is None or node._is_none() or node._is_missing():
        return None
    if node._is_interpolation():
        node = node._dereference_node()
        return _plain(node)
    if OmegaConf.is_config(node):
        return OmegaConf.to_container(node, resolve=True)
    return node._value()


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _leaves(f"{name}.{key}", entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _leaves(name, entry)
    else:
        yield name, value
