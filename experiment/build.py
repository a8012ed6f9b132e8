"""Building of objects from configurations, here and nowhere else.

`_target_` names a class of `flexround` or `tasks`, the logger's, or what a package defines that the
user has allowed by plugins= on the command line. Nothing else is imported, and nothing else called.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, cast, get_origin, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import SchemaError

if TYPE_CHECKING:
    from flexround.grid import Grid

_ARBITRARY = ConfigDict(arbitrary_types_allowed=True, strict=True)


OURS = ("flexround", "tasks")
LOGGERS = ("experiment.wandb_logger.WandbLogger",)
TARGET, PARTIAL = "_target_", "_partial_"
# What would act of a loop's options where none of them is the method's; it is off there.
ACTING = ("iters", "act_iters", "e2e_iters", "held_out", "patience")
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


def build(node: DictConfig | None, plugins: Sequence[str] = ()) -> Any:
    """Return the object that node describes, or None for an empty node.

    Raises:
        ValueError: when a class in node is none of ours nor of plugins; what the object's own
            constructor refuses.
    """
    if not node:
        return None
    for path, part in _described(str(node._key() or ""), node):
        target_of(path, part, plugins)
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def build_grid(cfg: DictConfig) -> Grid:
    """Return the grid of the weights; a table of levels is symmetric whatever symmetric= says.

    Raises:
        ValueError: when bits or groups are none that it has.
    """
    from flexround.grid import Grid  # with it comes torch

    levels = build(cfg.grid, cfg.plugins)
    symmetric = cfg.symmetric or levels is not None
    return Grid(cfg.bits, symmetric, build(cfg.granularity, cfg.plugins), levels)


def build_loop(cfg: DictConfig) -> Any:
    """Return the loop over layers.

    In a sweep a method that learns nothing stands beside others with the same options, which are
    in no name of its runs; so that they do nothing there.

    Raises:
        ValueError: as build does.
    """
    node = cfg.recon
    if has_idle_loop(cfg):
        given = cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
        node = OmegaConf.create({**given, **{name: 0 for name in ACTING if name in given}})
    return build(node, cfg.plugins)


def has_idle_loop(cfg: DictConfig) -> bool:
    """Return whether none of the loop's options is the method's, which learns nothing."""
    return "recon" in cfg.idle.get("quant", ())


def validate(cfg: DictConfig) -> None:
    """Import every `_target_` of cfg and check the arguments given to it against its signature.

    What cfg.idle has of the task is taken out of it: a model's file says how long its samples are,
    for the tasks that ask.

    Raises:
        ValueError: names the option, what it is, and what the signature takes.
    """
    for option in chain.from_iterable(cfg.get("idle", {}).values()):
        group, _, key = option.partition(".")
        if group == "task" and key in cfg.task:
            with open_dict(cfg.task):
                del cfg.task[key]
    plugins = cfg.get("plugins") or ()
    found = [
        (path, part, target_of(path, part, plugins))
        for group, node in cfg.items() if group != "hydra"  # which has built its own already
        for path, part in _described(str(group), node)
    ]  # fmt: skip
    for path, part, target in found:
        _validate_node(path, part, target)


def check_plugins(plugins: Sequence[str], given: Sequence[str]) -> None:
    """Check that plugins are names of packages, and stand on the command line: among given.

    Raises:
        ValueError: names what is wrong.
    """
    if plugins and not any(text.lstrip("+").startswith("plugins=") for text in given):
        raise ValueError(
            f"plugins={list(plugins)} stands in a file; whose code may run is said on the command "
            "line alone"
        )
    for name in plugins:
        if not DOTTED.fullmatch(name):
            raise ValueError(f"plugins={name}: give packages by name, plugins=[my_package]")


def target_of(path: str, node: DictConfig, plugins: Sequence[str]) -> Callable[..., Any]:
    """Return what `_target_` of node names; path is what the options call node.

    Raises:
        ValueError: when it is no class of ours, nor one or a function of plugins; when it is not
            there; when Hydra is asked for more than it.
    """
    name = node[TARGET]
    odd = [str(key) for key in node if str(key).startswith("_") and key not in (TARGET, PARTIAL)]
    if odd:
        raise ValueError(f"{path}.{odd[0]}: there is no such option")
    if not isinstance(name, str) or not DOTTED.fullmatch(name):
        raise ValueError(f"{path}.{TARGET}={name!r}: give the dotted name of a class")
    roots = (*OURS, *plugins)
    if name not in LOGGERS and not _is_within(name, roots):
        package = name.partition(".")[0]
        raise ValueError(
            f"{path}.{TARGET}={name} is none of {' or '.join(OURS)}, which alone are built; if you "
            f"trust it, give plugins=[{package}] on the command line"
        )
    module, _, last = name.rpartition(".")
    try:
        target: Callable[..., Any] = getattr(importlib.import_module(module), last)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}.{TARGET}={name} can't be imported: {error}") from error
    # A module's own imports, such as Path, are within it by name alone.
    home = getattr(target, "__module__", None)
    own = isinstance(home, str) and (name in LOGGERS or _is_within(f"{home}.", roots))
    wanted = inspect.isclass(target) or (_is_within(name, plugins) and inspect.isfunction(target))
    if not own or not wanted:
        raise ValueError(f"{path}.{TARGET}={name} is no class of that module")
    return target


def _is_within(name: str, packages: Sequence[str]) -> bool:
    return any(name.startswith(f"{package}.") for package in packages)


def _described(path: str, node: Any) -> Iterator[tuple[str, DictConfig]]:
    """Yield every node with a `_target_` in node by its path, lists included."""
    if isinstance(node, DictConfig) and not node._is_none():
        if TARGET in node:
            yield path, node
        children: Sequence[Any] = list(node)
    elif isinstance(node, ListConfig) and not node._is_none():
        children = range(len(node))
    else:
        return
    for key in children:
        if not OmegaConf.is_missing(node, key):
            yield from _described(f"{path}.{key}", node[key])


def _validate_node(path: str, node: DictConfig, target: Any) -> None:
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
    if missing and not node.get(PARTIAL):
        raise ValueError(f"{path}: {target.__name__} also needs {', '.join(missing)}")
    hints = _type_hints(target)
    for key in given:
        value = node[key]
        described = isinstance(value, DictConfig) and TARGET in value  # it is looked at by itself
        if key in hints and not described:
            _check_type(f"{path}.{key}", value, hints[key])


def _type_hints(target: Any) -> dict[str, Any]:
    """Return the types of the arguments that target takes.

    Raises:
        ValueError: when one can't be looked up where target is defined.
    """
    # A dataclass's own __init__ may be made in another file than its fields.
    whole = is_dataclass(target) or not inspect.isclass(target)
    function = target if whole else target.__init__
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ValueError(
            f"{target.__name__}: {error}, which its arguments' types need; import it outside of "
            "`if TYPE_CHECKING:`"
        ) from error


def _check_type(path: str, value: Any, hint: Any) -> None:
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, list) and get_origin(hint) is tuple:
        value = tuple(value)  # YAML has none
    try:
        TypeAdapter(hint, config=_ARBITRARY).validate_python(value)
    except (PydanticUserError, SchemaError) as error:  # a Protocol that can't be looked for
        raise ValueError(f"{path}={value}: not a {getattr(hint, '__name__', hint)}") from error
    except ValidationError as error:
        raise ValueError(f"{path}={value}: {error.errors()[0]['msg']}") from error
