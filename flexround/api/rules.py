"""Rules of the configuration: values that follow from other values, as ${signround_lr:...}.

They are what conf/ and `flexround.quantize` compute alike; nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

BITS = (2, 8)  # the fewest and the most that a code has

# A solver's options that say where the scales of groups come from, and bits of the first and the
# last activation of an image network. They are in the names of runs without groups and of language
# too, so that conf/ does not have them among those that do nothing there.
OF_IMAGES = ("act_stem_bits", "act_head_bits", "activation.stem_bits", "activation.head_bits")
OF_GROUPS = (
    "quant.static_groups", "quant.stale_scales", "quant.gptq.static_groups",
    "quant.gptq.stale_scales",
)  # fmt: skip


def idle_besides(
    granularity: Mapping[str, Any], language: bool, clipping: bool
) -> dict[str, tuple[str, ...]]:
    """Return the options, besides those of conf/, that do nothing under what was chosen.

    They are in the names of runs all the same, by what leaves them without effect: a granularity,
    a language model, or ranges that are not clipped.
    """
    groups = str(granularity.get("_target_")).endswith(".PerGroup")
    return {
        "granularity": () if groups else OF_GROUPS,
        "model": OF_IMAGES if language else (),
        "clipping": () if clipping else ("ranges.candidates",),
    }


def idle_but(
    idle: Mapping[str, Sequence[str]], node: str, options: Iterable[str], *kept: str
) -> dict[str, list[str]]:
    """Return idle, by group, where of an idle node the options kept do something after all."""
    rest = [f"{node}.{name}" for name in options if name not in kept]
    return {
        group: [o for o in own if o != node] + (rest if node in own else [])
        for group, own in idle.items()
    }


def _by_scale(scale: str, full: Any, smoke: Any) -> Any:
    """Return full, or smoke under scale=smoke."""
    return smoke if scale == "smoke" else full


def _candidates(clipping: bool, candidates: int) -> int:
    """Return how many ranges are tried: 1, that of min-max, without clipping."""
    return candidates if clipping else 1


def _if_quantized(activation: Mapping[str, Any] | None, yes: Any, no: Any) -> Any:
    """Return yes where activations are quantized, no where they are not."""
    return yes if activation else no


def _idle_rank(rule: str) -> list[str]:
    """Return the options of LRQ that do nothing under a rule for its ranks."""
    return ["quant.rank"] if rule == "code" else []


def _only_for(needed: str, chosen: str, *options: str) -> list[str]:
    """Return the options that do nothing unless needed is chosen, for idle: none where it is."""
    return [] if chosen == needed else list(options)


def _idle_at(off: int, chosen: int, *options: str) -> list[str]:
    """Return the options that do nothing where off is chosen, for idle."""
    return list(options) if chosen == off else []


def _idle_steps(act_steps: str) -> list[str]:
    """Return the options of step sizes that do nothing, by when those are learned."""
    at_all = [] if act_steps in ("after", "together") else ["recon.act_lr"]
    return at_all + ([] if act_steps == "after" else ["recon.act_iters", "recon.act_inputs"])


def _idle_prob(inputs: str, act_steps: str) -> list[str]:
    """Return recon.quant_prob where nothing is quantized by chance while a unit is learned."""
    return [] if inputs == "mixed" or act_steps == "together" else ["recon.quant_prob"]


def _signround_lr(iters: int, bits: int) -> float:
    """Return auto-round's rate: 1 / iters, doubled from 1000 iterations on at 3 bits and fewer."""
    return (2 if iters >= 1000 and bits <= 3 else 1) / max(1, iters)


def check_moving_zero_point(
    ranges: str, symmetric: bool, activation: Mapping[str, Any] | None
) -> None:
    """Check that ranges, a member's name, has a zero point to move where that is its use.

    symmetric says so of the weights' grid, a table of levels included; activation are the settings
    of the activations' quantizers, None where there are none.

    Raises:
        ValueError: when weights and activations are all on symmetric grids.
    """
    static = activation is not None and "symmetric" in activation
    asymmetric = activation is not None and static and not activation["symmetric"]
    if ranges == "lp_2d" and symmetric and not asymmetric:
        raise ValueError(
            "ranges=lp_2d moves the zero point, which symmetric=true has none of, nor a table of "
            "levels; give ranges=lp, symmetric=false with grid=integer, or "
            "activation=static_per_tensor activation.symmetric=false"
        )


def check_imatrix(
    ranges: str, symmetric: bool, language: bool, static: bool, quant: Mapping[str, Any]
) -> None:
    """Check that the search by what inputs weigh is for what is chosen.

    symmetric says so of integer weights; static of activations with ranges of their own; quant has
    the method's options.

    Raises:
        ValueError: when it is not.
    """
    if ranges != "imatrix":
        return
    if not language:
        raise ValueError("ranges=imatrix is for language models; give ranges=lp")
    what = ""
    if static:
        what = "static ranges of activations"
    elif "_partial_" not in quant:
        what = "solvers, which see the Hessian"
    elif "first_logit" in quant:
        what = "methods that learn the ends of a range, which has zero in its middle"
    if what:
        raise ValueError(f"ranges=imatrix is not for {what}; give ranges=min_max or ranges=lp")
    if not symmetric:
        raise ValueError(
            "ranges=imatrix is for symmetric integers; give symmetric=true grid=integer, or "
            "ranges=lp"
        )


def check_layer_bits(given: Any, bits: int, levels: bool) -> None:
    """Check bits_per_layer=, bits by layer's name or pattern; None gives no layer its own.

    bits are those of the other layers, levels says whether those are on a table of levels.

    Raises:
        ValueError: names what is wrong.
    """
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(
            f"bits_per_layer={given}: give layers with their bits, such as "
            "'bits_per_layer={*.down_proj: 8}'"
        )
    if given and levels:
        raise ValueError(
            f"bits_per_layer= has no choice with a table of levels, which has {bits} bits alone; "
            "leave it out, or give grid=integer"
        )
    low, high = BITS
    for name, own in (given or {}).items():
        if not isinstance(name, str):
            raise ValueError(f"bits_per_layer: {name!r} is no text; give a layer's name in quotes")
        if type(own) is not int or not low <= own <= high:
            raise ValueError(
                f"bits_per_layer: {name} has {own}; give a whole number from {low} to {high}"
            )


def _signround_loss(bits: int) -> str:
    """Return the loss of SignRound's second version, as auto-round 0.16.1 chooses it."""
    return "trimmed" if bits <= 3 else "squared"


RULES: dict[str, Callable[..., Any]] = {
    "by_scale": _by_scale,
    "candidates": _candidates,
    "idle_at": _idle_at,
    "idle_prob": _idle_prob,
    "idle_rank": _idle_rank,
    "idle_steps": _idle_steps,
    "if_quantized": _if_quantized,
    "only_for": _only_for,
    "signround_loss": _signround_loss,
    "signround_lr": _signround_lr,
}


def resolved(node: Any, tree: Mapping[str, Any]) -> Any:
    """Return node with each ${name} as tree has it and each ${rule:value,...} as the rule says.

    This is the part of OmegaConf's grammar that the presets use: a text is one such expression as a
    whole, or none. Names are dotted paths from the root of tree.

    >>> resolved({"lr": "${signround_lr:${iters},4}"}, {"iters": 200})
    {'lr': 0.005}

    Raises:
        ValueError: for a rule or a name that there is not.
    """
    if isinstance(node, Mapping):
        return {key: resolved(value, tree) for key, value in node.items()}
    if isinstance(node, list):
        return [resolved(value, tree) for value in node]
    if not isinstance(node, str) or not node.startswith("${"):
        return node
    name, colon, arguments = node[2:-1].partition(":")
    if not colon:
        return resolved(_at(name, tree), tree)
    if name not in RULES:
        raise ValueError(f"{node}: there is no rule {name} of {', '.join(RULES)}")
    return RULES[name](*(_argument(text, tree) for text in _split(arguments)))


def _at(name: str, tree: Mapping[str, Any]) -> Any:
    found: Any = tree
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise ValueError(f"${{{name}}}: there is no such option")
        found = found[part]
    return found


def _argument(text: str, tree: Mapping[str, Any]) -> Any:
    if text.startswith("${"):
        return resolved(text, tree)
    if text.startswith("["):
        return [_argument(part, tree) for part in _split(text[1:-1]) if part]
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.lstrip("-").isdigit() else text


def _split(arguments: str) -> list[str]:
    """Return arguments at the commas that stand in no inner expression."""
    parts, depth = [""], 0
    for character in arguments:
        depth += {"{": 1, "}": -1, "[": 1, "]": -1}.get(character, 0)
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts
