"""Scores of layers that no calibration token has reached, from those of their like.

A router sends some experts no token at all, and in a network of fewer bits it sends tokens
elsewhere. Such a layer has no gradient, and a score of 0 would have the fewest bits chosen for it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

log = logging.getLogger(__name__)

Scores = Mapping[str, Mapping[int, float]]  # by layer and bits
SHOWN = 3


def completed(scores: Scores, sizes: Mapping[str, int], options: Sequence[int]) -> Scores:
    """Return scores with one for each layer and each of options; warn of layers that had none.

    A layer that was reached at other bits has its score at the nearest of those, times the ratio of
    the mean scores at the two; one that never was has the mean score of its bits for each of its
    weights (sizes: how many, by layer). The means are over layers that were reached at all options:
    those called alike but for numbers, as a mixture's experts are, or all where none of them was.

    Raises:
        ValueError: when a score is missing and no layer was reached at all options.
    """
    missing = {name: own for name, own in scores.items() if len(own) < len(options)}
    if not missing:
        return scores
    alike: dict[str, list[str]] = {}
    known = [name for name in scores if name not in missing]
    for name in known:
        alike.setdefault(_kind(name), []).append(name)
    if not known:
        raise ValueError(
            "allocation=delta_loss: no layer is reached by a calibration token at all of "
            f"allocation.options={list(options)}; give more of them (num_samples=)"
        )

    def mean_of(names: Sequence[str]) -> dict[int, float]:
        weights = sum(sizes[name] for name in names)
        return {bits: sum(scores[name][bits] for name in names) / weights for bits in options}

    means = {kind: mean_of(names) for kind, names in alike.items()}
    of_all, found = mean_of(known), dict(scores)
    for name, own in missing.items():
        mean = means.get(_kind(name), of_all)
        found[name] = {bits: _score(own, bits, mean, sizes[name]) for bits in options}
    shown = ", ".join(list(missing)[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
    log.warning(
        "allocation=delta_loss: no calibration token reaches %d of %d layers at some number of "
        "bits (%s); scores of their like stand for theirs, num_samples= gives more tokens",
        len(missing), len(scores), shown,
    )  # fmt: skip
    return found


def _score(own: Mapping[int, float], bits: int, mean: Mapping[int, float], size: int) -> float:
    """Return the score at bits of a layer of size weights; mean is by bits, for each weight."""
    if bits in own:
        return own[bits]
    reached = [other for other in own if mean[other] > 0]
    if not reached:
        return size * mean[bits]
    nearest = min(reached, key=lambda other: abs(other - bits))
    return own[nearest] * mean[bits] / mean[nearest]


def _kind(name: str) -> str:
    """Return the name of a layer without its numbers."""
    return re.sub(r"\d+", "", name)
