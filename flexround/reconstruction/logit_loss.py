"""Loss of the last block through what follows it: the last norm and the head.

LFQ (arXiv 2605.29756): the block is learned for the next token's distribution, the full-precision
network's, rather than for the block's own output. Its cross entropy and the divergence here differ
by the full-precision network's entropy, which nothing that is learned has a part in: the gradients
are the same, and the divergence is 0 where the two networks agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flexround.calibration.activation_cache import moved
from flexround.models.base import ModelAdapter

# block is no loss of this module; logits the paper's, logits_mse what it compares that with (the
# head without the cross entropy), next_token what auto-round's port learns from: no full precision.
LastLoss = Literal["block", "logits", "logits_mse", "next_token"]
IGNORED = -100  # the label of a position that has no next token

PIECE = 2**25  # logits that are held at once, 128 MiB of them


@dataclass(frozen=True)
class LogitLoss:
    """Loss of the last block's outputs [samples, tokens, hidden], by way of the logits.

    Attributes:
        tokens: the calibration set as the model takes it, each [samples, tokens].
        mask: which of the tokens count, [samples, tokens], or None where all do.
    """

    kind: LastLoss
    adapter: ModelAdapter
    tokens: Mapping[str, Tensor]
    mask: Tensor | None

    def is_of(self, module: nn.Module) -> bool:
        """Return whether module is the last block, whose loss this is."""
        return module is self.adapter.blocks()[-1].module

    def counted(self, samples: Tensor) -> Tensor:
        """Return which positions of samples [batch] count, [batch, tokens], on the CPU.

        A next token is to be learned from where there is one.
        """
        shape = self.tokens["input_ids"][samples].shape
        counted = (
            torch.ones(shape, dtype=torch.bool) if self.mask is None else self.mask[samples].cpu()
        )
        if self.kind != "next_token":
            return counted
        following = torch.zeros_like(counted)
        following[:, :-1] = counted[:, :-1] & counted[:, 1:]
        return following

    def __call__(self, outputs: Tensor, targets: Tensor, samples: Tensor) -> Tensor:
        """Return the mean loss of outputs over the positions that count, [].

        targets are the full-precision block's outputs on samples [batch]. No more than PIECE logits
        are held at once: with each piece's loss its gradient is computed.
        """
        counted, vocabulary = self.counted(samples), self.adapter.vocabulary()
        batch = {n: moved(values[samples], outputs.device) for n, values in self.tokens.items()}
        here = moved(counted, outputs.device)  # no piece waits for a copy
        labels = F.pad(batch["input_ids"][:, 1:], (0, 1), value=IGNORED)  # of next_token
        assert vocabulary, "check_last_loss has seen to it"
        at_once = max(1, PIECE // vocabulary)
        length = counted.shape[1]
        rows, columns = max(1, at_once // length), min(length, at_once)
        learns = torch.is_grad_enabled() and outputs.requires_grad
        gradient = torch.zeros_like(outputs) if learns else None
        total = torch.zeros((), dtype=outputs.dtype, device=outputs.device)
        for row in range(0, len(counted), rows):
            for column in range(0, length, columns):
                piece = slice(row, row + rows), slice(column, column + columns)
                if not counted[piece].any():
                    continue
                part = outputs[piece].detach().requires_grad_(learns)
                with torch.set_grad_enabled(learns):
                    tokens = {name: values[piece] for name, values in batch.items()}
                    loss = self._sum(part, targets[piece], tokens, here[piece], labels[piece])
                total += loss.detach()
                if gradient is not None:
                    loss.backward()  # part is all that learns of what it is made of
                    assert part.grad is not None
                    gradient[piece] = part.grad
        count = max(1, int(counted.sum()))
        if gradient is None:
            return total / count
        mean: Tensor = _Known.apply(outputs, total / count, gradient / count)
        return mean

    def _sum(
        self,
        outputs: Tensor,
        targets: Tensor,
        batch: Mapping[str, Tensor],
        counted: Tensor,
        labels: Tensor,
    ) -> Tensor:
        """Return the summed loss of one piece of the samples."""
        logits = self._head(batch, outputs)
        if self.kind == "next_token":
            flat = labels.masked_fill(~counted, IGNORED).flatten()
            return F.cross_entropy(
                logits.flatten(0, 1), flat, ignore_index=IGNORED, reduction="sum"
            )
        with torch.no_grad():
            wanted = self._head(batch, targets.to(outputs.dtype))
        if self.kind == "logits":
            own, wanted = F.log_softmax(logits, dim=-1), F.log_softmax(wanted, dim=-1)
            each = F.kl_div(own, wanted, reduction="none", log_target=True).sum(dim=-1)
        else:
            each = (logits - wanted).square().sum(dim=-1)
        return (each * counted).sum()

    @cached_property
    def _head(self) -> Callable[[Any, Tensor], Tensor]:
        return self.adapter.head()


class _Known(torch.autograd.Function):
    """A scalar whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, _: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        """Return value."""
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Return gradient, scaled."""
        (gradient,) = ctx.saved_tensors
        return grads[0] * gradient, None, None


def check_last_loss(kind: LastLoss, adapter: ModelAdapter) -> None:
    """Check that adapter's model predicts a next token where the loss is one of its logits.

    Raises:
        ValueError: when it does not; names the model.
    """
    if kind != "block" and adapter.vocabulary() is None:
        raise ValueError(
            f"recon.last_loss={kind} is of the next token that a causal language model predicts, "
            f"and {type(adapter.model).__name__} predicts none; give recon.last_loss=block"
        )
