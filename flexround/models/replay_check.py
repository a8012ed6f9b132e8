"""Check that layers replayed one by one compute what they do in the model's own forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flexround.calibration.calls import RecordedCalls
from flexround.calibration.outputs import first_of

if TYPE_CHECKING:
    from flexround.models.language_adapter import LanguageAdapter, Tokens

# Of what a layer adds to its input, and of its output: another mask changes per cents of the first.
OF_CHANGE, OF_OUTPUT = 1e-3, 1e-5


@torch.no_grad()
def check_replay(adapter: LanguageAdapter, calls: RecordedCalls, first: Tokens) -> None:
    """Check calls, recorded of adapter's layers, on first, the first of the calibration samples.

    Raises:
        ValueError: when a layer gives something else when it is replayed; names it.
    """
    adapter.prepare()
    hidden: Tensor = calls.inputs[:1].to(adapter.device)
    before = None
    mask = adapter.loss_mask([first])
    counts = torch.ones(hidden.shape[:2], dtype=torch.bool) if mask is None else mask
    for index, block in enumerate(adapter.blocks()):
        with adapter.on_device(block):
            own = adapter.output_of(index, first, before, widen=True)
            output = first_of(own)
            rounding, hidden = _rounding(hidden, block.dtype), hidden.to(block.dtype)
            try:
                replayed = calls.replay(block.module, torch.arange(1), adapter.device, hidden)
                error = _error(replayed, output, hidden, counts, rounding)
            except (RuntimeError, IndexError) as refused:
                raise ValueError(_refusal(block.name, str(refused).splitlines()[0])) from refused
        if not torch.isfinite(output[counts]).all():
            return  # whoever looks at the targets names it
        if not error <= 1:
            size = (replayed - output)[counts].norm() / output[counts].norm()
            raise ValueError(_refusal(block.name, f"its output differs by {size:.2g} of itself"))
        before, hidden = own, output
        calls = calls.with_inputs(calls.inputs)


def _rounding(hidden: Tensor, dtype: torch.dtype) -> float:
    """Return how far the first inputs, which are held in half precision, are from the model's."""
    eps = torch.finfo(hidden.dtype).eps
    return eps if eps > torch.finfo(dtype).eps else 0.0


def _error(
    replayed: Tensor, output: Tensor, hidden: Tensor, counts: Tensor, rounding: float
) -> float:
    """Return the replayed output's error as a share of what is allowed."""
    change = output - hidden if output.shape == hidden.shape else output
    of_output = OF_OUTPUT + rounding
    allowed = OF_CHANGE * change[counts].norm() + of_output * output[counts].norm()
    error = (replayed - output)[counts].norm() / allowed.clamp(min=1e-30)
    return float(error)


def _refusal(block: str, why: str) -> str:
    return (
        f"block {block} can't be replayed by itself as the model runs it ({why}); this "
        "architecture is not supported"
    )
