"""Presets of methods and loops: the defaults of conf/, as `python -m scripts.presets` writes them.

presets.json is made from the YAML files and held to them by a test; nothing here has a default of
its own. A method is chosen by its name, and everything below it by the command line's own names
(recon.iters, quant.rank, group_size).
"""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from flexround.api.rules import (
    check_imatrix,
    check_layer_bits,
    check_moving_zero_point,
    idle_besides,
    idle_but,
    resolved,
)

FILE = Path(__file__).with_name("presets.json")
Kind = Literal["vision", "language"]
# By a group's name: where a member of it stands in the file.
GROUPS = ("granularity", "grid", "ranges", "activation", "transform")
LAYER_BITS = "bits_per_layer"
MAY_BE_NONE = ("model.first_last_bits",)  # though their default is a number
NOT_GIVEN = ("scale",)  # of the roots: a sweep's, and no option of a call
# Options of the command line that are arguments of a call, and none of its options.
ARGUMENTS = (
    "bits", "granularity", "group_size", "symmetric", "grid", "bits_per_layer", "act_bits", "seed",
)  # fmt: skip


@cache
def presets() -> dict[str, Any]:
    """Return what the file holds; nobody changes it."""
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def methods() -> list[str]:
    """Return the names of all methods and solvers."""
    return list(presets()["methods"])


@dataclass(frozen=True)
class Choice:
    """What a call has chosen.

    Attributes:
        names: the chosen member by group: quant, recon, and those of GROUPS.
        values: every setting, nested as on the command line.
    """

    names: dict[str, str]
    values: dict[str, Any]

    def build(self, group: str) -> Any:
        """Return the object that a group's settings describe, None where it has none."""
        return _built(self.values[group])


def choose(kind: Kind, method: str, given: Mapping[str, Any]) -> Choice:
    """Return the settings of method on a network of kind; given are options by dotted name.

    Raises:
        ValueError: for a method, member, option or type of value that there is not, and for an
            option that does nothing under what was chosen; says what there is.
    """
    known = presets()
    own = known["methods"][_member("method", method, methods())]
    names = {"quant": method, **_chosen_groups(known, own, kind, given)}
    loop = own["loops"][names["recon"]]
    tree = dict(known["root"]) | loop["root"] | {"quant": own["quant"], "recon": loop["recon"]}
    of_kind = known["kinds"][kind]
    tree["symmetric"] = of_kind["symmetric"]
    tree["model"] = {"leave": [], "first_last_bits": of_kind["first_last_bits"]}
    tree |= {group: known[group][names[group]]["node"] for group in GROUPS}
    tree |= known["grid"][names["grid"]]["root"]
    tree = json.loads(json.dumps(tree))  # a copy, to be written to
    plain = resolved(tree, tree)
    values = {n: value for n, value in given.items() if n not in names and n != LAYER_BITS}
    for name, value in values.items():
        _set(tree, plain, name, value)
    tree = resolved(tree, tree)
    _check_idle(kind, loop["idle"], names, tree, given)
    if kind == "language" and "model.first_last_bits" in given:
        raise ValueError(
            "model.first_last_bits is for networks of tensors; a language model's first and last "
            "layers (embeddings, head) stay in full precision"
        )
    levels = tree["grid"] is not None
    check_moving_zero_point(names["ranges"], tree["symmetric"] or levels, tree["activation"])
    static = tree["activation"] is not None and "symmetric" in tree["activation"]
    even = tree["symmetric"] and not levels
    check_imatrix(names["ranges"], even, kind == "language", static, tree["quant"])
    check_layer_bits(given.get(LAYER_BITS), tree["bits"], levels)
    return Choice(names, tree | {LAYER_BITS: dict(given.get(LAYER_BITS, {}))})


def _chosen_groups(
    known: Mapping[str, Any], own: Mapping[str, Any], kind: Kind, given: Mapping[str, Any]
) -> dict[str, str]:
    """Return the member of each group: the given one, or what the rest of the call asks for."""
    grid = _member("grid", given.get("grid", "integer"), known["grid"])
    brings = known["grid"][grid]["granularity"] or known["kinds"][kind]["granularity"]
    granularity = "per_group" if "group_size" in given else brings
    activation = "static_per_tensor" if "act_bits" in given else "none"
    first = {
        "granularity": granularity, "grid": grid, "ranges": own["ranges"],
        "activation": activation, "transform": "none",
    }  # fmt: skip
    names = {g: _member(g, given.get(g, first[g]), known[g]) for g in GROUPS}
    return {"recon": _member("recon", given.get("recon", own["loop"]), own["loops"])} | names


def _member(group: str, name: Any, known: Iterable[str]) -> str:
    """Return name.

    Raises:
        ValueError: when it is none of known.
    """
    there = list(known)
    if isinstance(name, str) and name in there:
        return name
    near = difflib.get_close_matches(str(name), there, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"{group}={name!r}: {hint}give one of {', '.join(there)}")


def _set(tree: dict[str, Any], plain: Mapping[str, Any], name: str, value: Any) -> None:
    """Set the option called name in tree; plain has the defaults that its type is told by.

    Raises:
        ValueError: when there is no such option, or value is of another type.
    """
    known = {key: default for key, default in _leaves(plain) if key not in NOT_GIVEN}
    if name not in known:
        raise ValueError(f"{name}: there is no such option; {_instead(name, known)}")
    if not (_is_like(known[name], value) or (value is None and name in MAY_BE_NONE)):
        raise ValueError(f"{name}={value!r}: give {_words(known[name])}, as {known[name]!r}")
    *parents, last = name.split(".")
    for parent in parents:
        tree = tree[parent]
    tree[last] = value


def _instead(name: str, known: Iterable[str]) -> str:
    """Return what may be meant by name, which is no option, and the options that there are.

    A name counts by its last part, since a group is left out more often than a word is misspelt.
    """
    options = [key for key in known if key not in ARGUMENTS]
    group, dot, _ = name.partition(".")
    ends: dict[str, list[str]] = {}
    for key in options if dot else known:  # an argument has no group
        ends.setdefault(key.rpartition(".")[2], []).append(key)
    near = difflib.get_close_matches(name.rpartition(".")[2], ends, n=1, cutoff=0.75)
    meant = [key for end in near for key in ends[end]]
    told = [f"{key}, an argument of its own" if key in ARGUMENTS else key for key in meant]
    hint = f"did you mean {' or '.join(told)}? " if told else ""
    here = [key for key in options if dot and key.startswith(f"{group}.")]
    shown = here or [key for key in options if "." not in key]
    return f"{hint}there are {', '.join(shown)}"


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield every option below node by dotted name, with its value; no class's own names."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif not key.startswith("_"):
            yield prefix + key, value


def _is_like(default: Any, value: Any) -> bool:
    """Return whether value is of default's type, where that is None a whole number or None."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if default is None:
        return value is None or isinstance(value, int)
    if isinstance(default, int):
        return isinstance(value, int)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list):
        return isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
    return isinstance(value, type(default))


def _words(default: Any) -> str:
    if isinstance(default, bool):
        return "True or False"
    kinds = {int: "a whole number", float: "a number", list: "a list of names", str: "a word"}
    return kinds.get(type(default), "a whole number or None")


def _check_idle(
    kind: Kind, of_loop: Mapping[str, Any], names: Mapping[str, str],
    tree: Mapping[str, Any], given: Mapping[str, Any],
) -> None:  # fmt: skip
    """Refuse options given that do nothing under what was chosen.

    Raises:
        ValueError: names the option and the choice that leaves it without effect.
    """
    known, idle = presets(), dict(of_loop)
    if (tree["activation"] or {}).get("ranges_from") == "fp":  # set batch by batch
        idle = idle_but(idle, "recon", tree["recon"], "batch_size")
    for group in GROUPS:
        idle |= known[group][names[group]]["idle"]
    besides = idle_besides(tree["granularity"], kind == "language", tree["clipping"])
    for group, options in besides.items():
        idle[group] = [*idle.get(group, ()), *options]
    leaves = dict(_leaves(tree))
    for group, options in idle.items():
        for option in resolved(options, tree):
            for name, value in given.items():
                if name == option or name.startswith(f"{option}."):
                    chosen = names.get(group, leaves.get(group))
                    raise ValueError(
                        f"{name}={value!r} does nothing with {group}={chosen}; leave it out, or "
                        f"choose another {group}"
                    )


def _built(node: Any) -> Any:
    """Return what node describes; a class is named by its _target_, as everywhere in conf/."""
    if not isinstance(node, Mapping):
        return node
    module, _, name = node["_target_"].rpartition(".")
    made = getattr(importlib.import_module(module), name)
    arguments = {key: _built(value) for key, value in node.items() if not key.startswith("_")}
    return partial(made, **arguments) if node.get("_partial_") else made(**arguments)
