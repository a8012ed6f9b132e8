"""Building of objects from configurations, here and nowhere else."""

from __future__ import annotations

import difflib
import importlib
import inspect
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

_ARBITRARY = ConfigDict(arbitrary_types_allowed=True, strict=True)


def build(node: DictConfig | None) -> Any:
    """Return the object that node describes, or None for an empty node.

    Raises:
        ValueError: what the object's own constructor refuses.
    """
    if not node:
        return None
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def validate(cfg: DictConfig) -> None:
    """Import every `_target_` of cfg and check the arguments given to it against its signature.

    Raises:
        ValueError: names the option, what it is, and what the signature takes.
    """
    for group, node in cfg.items():
        if isinstance(node, DictConfig) and "_target_" in node:
            _validate_node(str(group), node)


def _validate_node(path: str, node: DictConfig) -> None:
    module, _, name = node._target_.rpartition(".")
    try:
        target = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}._target_={node._target_} can't be imported: {error}") from error
    parameters = inspect.signature(target).parameters
    given = [str(key) for key in node if not str(key).startswith("_")]
    for key in given:
        if key not in parameters:
            near = difflib.get_close_matches(key, parameters, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"{path}.{key}: {target.__name__} has no such option{hint} "
                f"(it takes {', '.join(parameters)})"
            )
    missing = [
        name for name, p in parameters.items()
        if p.default is inspect.Parameter.empty and name not in given
    ]  # fmt: skip
    if missing and not node.get("_partial_"):
        raise ValueError(f"{path}: {target.__name__} also needs {', '.join(missing)}")
    hints = _type_hints(target)
    for key in given:
        value = node[key]
        if isinstance(value, DictConfig) and "_target_" in value:
            _validate_node(f"{path}.{key}", value)
        elif key in hints:
            _check_type(f"{path}.{key}", value, hints[key])


def _type_hints(target: Any) -> dict[str, Any]:
    """Return the types of the arguments that target takes."""
    if is_dataclass(target):  # whose own __init__ may be made in another file than its fields
        return get_type_hints(target)
    return get_type_hints(target.__init__ if inspect.isclass(target) else target)


def _check_type(path: str, value: Any, hint: Any) -> None:
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    try:
        TypeAdapter(hint, config=_ARBITRARY).validate_python(value)
    except PydanticUserError as error:
        raise ValueError(f"{path}={value}: not a {getattr(hint, '__name__', hint)}") from error
    except ValidationError as error:
        raise ValueError(f"{path}={value}: {error.errors()[0]['msg']}") from error
