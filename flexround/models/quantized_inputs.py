"""Which layers of a vision network take a tensor that no activation quantizer has given.

Quantizers of activations are behind modules: behind what a forward function computes itself (a
functional ReLU, the product of a gate) there is none. From a quantizer on, a pass is followed
operation by operation; what pooling and reshaping give of quantized values counts as quantized, as
it is for the classifier of BRECQ's and QDrop's networks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from flexround.models.tracing import Place, Watched, logits_of, tensors_in

# Operations whose values are some of those that they take, or 0, or means of them; torch makes all
# other pooling and reshaping of these.
KEEPING = (
    "_adaptive_avg_pool2d", "_reshape_alias", "_to_copy", "_unsafe_view", "adaptive_max_pool2d",
    "alias", "avg_pool2d", "cat", "channel_shuffle", "clamp", "clamp_min", "clone",
    "constant_pad_nd", "detach", "expand", "flip", "gather", "hardtanh", "hardtanh_", "index",
    "index_select", "lift_fresh", "max_pool2d_with_indices", "mean", "native_channel_shuffle",
    "permute", "pixel_shuffle", "pixel_unshuffle", "relu", "relu_", "repeat", "roll", "select",
    "slice", "split", "split_with_sizes", "squeeze", "stack", "t", "transpose", "unbind",
    "unsqueeze", "upsample_nearest2d", "view",
)  # fmt: skip


class _Followed(Watched):
    """A pass in which the tensors are told apart that are quantized, or come from no layer."""

    def __init__(self) -> None:
        super().__init__()
        self._quantized: set[Place] = set()
        self._behind_a_layer: set[Place] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        taken = [self.place(tensor) for tensor in tensors_in((args, kwargs or {}))]
        behind = any(place in self._behind_a_layer for place in taken)
        kept = bool(taken) and all(place in self._quantized for place in taken)
        kept = kept and func.overloadpacket.__name__ in KEEPING
        output = func(*args, **(kwargs or {}))
        for tensor in tensors_in(output):
            self._note(self._behind_a_layer, tensor, behind)
            self._note(self._quantized, tensor, kept)
        return output

    def quantize(self, tensor: Tensor) -> None:
        """Take tensor as quantized from here on."""
        self._note(self._quantized, tensor, True)

    def leave_layer(self, tensor: Tensor) -> None:
        """Take tensor as what a layer has given."""
        self._note(self._behind_a_layer, tensor, True)

    def lacks(self, tensor: Tensor) -> bool:
        """Return whether tensor comes from a layer and is not quantized."""
        place = self.place(tensor)
        return place in self._behind_a_layer and place not in self._quantized

    def _note(self, among: set[Place], tensor: Tensor, member: bool) -> None:
        place, version = self.place(tensor)
        # An operation in place counts the version up when it is out of here.
        for own in ((place, version), (place, version + 1)):
            (among.add if member else among.discard)(own)


@torch.no_grad()
def unquantized(
    model: nn.Module,
    example: Tensor,
    layers: Iterable[nn.Module],
    inputs: Iterable[nn.Module],
    outputs: Iterable[nn.Module],
) -> list[nn.Module]:
    """Return the layers that take values of another layer which no site has quantized, in order.

    The sites are the inputs of the modules of inputs and what those of outputs return, all calls.
    """
    found: list[nn.Module] = []
    with _Followed() as followed:

        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            if followed.lacks(args[0]):
                found.append(module)

        def taken(_: nn.Module, args: tuple[Any, ...]) -> None:
            followed.quantize(args[0])

        def left(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            followed.leave_layer(output)

        def given(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            followed.quantize(output)

        handles = [m.register_forward_pre_hook(taken) for m in inputs]
        for layer in layers:
            handles += [
                layer.register_forward_pre_hook(before), layer.register_forward_hook(left),
            ]  # fmt: skip
        handles += [m.register_forward_hook(given) for m in outputs]
        try:
            logits_of(model, example)
        finally:
            for handle in handles:
                handle.remove()
    return found
