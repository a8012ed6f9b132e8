"""Chance: whether answers say less of the truth than guesses of the same frequencies would."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Probability that guesses do as badly (or a wrong order of classes as well) by luck alone.
LUCK = 1e-4


def check_classes(predicted: Tensor, truth: Tensor, names: Sequence[str], order: Tensor) -> None:
    """Check that the classes predicted [samples] agree with truth [samples] as guesses would.

    Guesses that are independent of the truth, with the classes' own frequencies, agree in the share
    sum_c P(predicted = c) P(truth = c); a network that has learned nothing is at that share.
    order [classes] has the class that each of the head's outputs was taken for.

    Raises:
        ValueError: when they agree less, or no more than so where another order of the classes
            would agree far more; names that order.
    """
    from scipy.optimize import linear_sum_assignment

    classes, samples = len(names), len(truth)
    confusion = torch.zeros(classes, classes, dtype=torch.double)
    confusion.index_put_((predicted, truth.long()), torch.ones(samples).double(), accumulate=True)
    guesses = torch.outer(confusion.sum(1), confusion.sum(0)) / samples**2
    right, chance = confusion.trace().item(), guesses.trace().item()
    rows, columns = linear_sum_assignment(confusion.numpy(), maximize=True)
    best, lucky = confusion[rows, columns].sum().item(), guesses[rows, columns].sum().item()
    reordered = best > right and _p(best, samples, lucky, "greater") < LUCK**2  # of many orders
    below = _p(right, samples, chance, "less") < LUCK
    if not below and (not reordered or _p(right, samples, chance, "greater") < LUCK):
        return
    reason = "its head is another task's, or was not trained"
    if reordered:
        found = ", ".join(names[columns[place]] for place in order.tolist())
        reason = (
            f"its classes seem to be {found} in this order ({100 * best / samples:.2f} then), "
            "which id2label in its config.json has to say"
        )
    raise ValueError(
        f"full precision has accuracy {100 * right / samples:.2f}, guesses have "
        f"{100 * chance:.2f}: {reason}"
    )


def check_scores(predicted: Tensor, truth: Tensor) -> None:
    """Check that the scores predicted [samples] do not fall where truth [samples] rises.

    Raises:
        ValueError: when they do, by more than luck.
    """
    from scipy.stats import pearsonr

    if len(truth) < 3 or not predicted.std() or not truth.std():
        return  # there is no correlation with a constant
    found = pearsonr(predicted.double(), truth.double(), alternative="less")
    if found.pvalue < LUCK:
        raise ValueError(
            f"full precision has a correlation of {100 * found.statistic:.2f}, guesses have 0: its "
            "score falls where the data's rises; the head is another task's"
        )


def _p(right: float, samples: int, chance: float, alternative: str) -> float:
    """Return the probability of so few or so many right answers among guesses."""
    from scipy.stats import binomtest

    chance = min(max(chance, 0.0), 1.0)
    return float(binomtest(round(right), samples, chance, alternative=alternative).pvalue)
