"""Activation sites of a transformer layer: the inputs of its linear layers, and keys and values.

Softmax and norms are left alone (FlexRound, arXiv 2306.00317, sec. 4.3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from flexround.structure import Site

# Layers whose outputs a key-value cache would hold.
KEYS_AND_VALUES = ("k_proj", "v_proj")


def sites_of(
    taken: Iterable[tuple[nn.Module, Tensor]], names: Mapping[nn.Module, str]
) -> list[Site]:
    """Return the sites of the layers that take these tensors in one pass, in this order.

    Layers that take the same tensor (query, key and value) share a site. One that is called several
    times has a site for each call: DeBERTa projects words and distances by the same layers.
    """
    calls = Counter[nn.Module]()
    together: dict[tuple[int, int], list[nn.Module]] = {}
    for module, tensor in taken:
        together.setdefault((id(tensor), calls[module]), []).append(module)
        calls[module] += 1
    sites = [
        Site(f"{names[modules[0]]}.input{f'.{use}' if use else ''}", modules, "input", use)
        for (_, use), modules in together.items()
    ]
    # By its whole name: a layer that gives queries as well, qkv_proj, ends alike.
    cached = [module for module in calls if names[module].rpartition(".")[2] in KEYS_AND_VALUES]
    return sites + [Site(f"{names[m]}.output", [m], "output", role="kv") for m in cached]
