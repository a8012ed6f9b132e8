"""Records of runs, and the tables and pictures made from them.

From a notebook:

>>> import results
>>> runs = results.load("results/readme.jsonl")    # without a path: outputs/results
>>> runs[runs.quant == "flexround"].shape[0] > 0
True

`results.leaderboard()`, `results.compare()`, `results.ablation()` and `results.plot()` take such a
frame, or a part of it, and return what `python -m results` prints and draws; `results.units()` has
the units of reconstruction. Nothing heavy is imported before the first of them is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from results.notebook import ablation, compare, leaderboard, load, plot, units

__all__ = ["ablation", "compare", "leaderboard", "load", "plot", "units"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from results import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
