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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flexround.models.tracing import logits_of

# Operations whose values are some of those that they take, or 0, or means of them.
KEEPING = frozenset(
    [
        "_adaptive_avg_pool2d",
        "_adaptive_avg_pool1d",
        "adaptive_avg_pool1d",
        "_reshape_alias",
        "_to_copy",
        "_unsafe_view",
        "adaptive_max_pool2d",
        "alias",
        "avg_pool1d",
        "avg_pool2d",
        "cat",
        "channel_shuffle",
        "chunk",
        "clamp",
        "clamp_min",
        "clone",
        "constant_pad_nd",
        "contiguous",
        "detach",
        "dropout",
        "expand",
        "flatten",
        "flip",
        "gather",
        "hardtanh",
        "hardtanh_",
        "index",
        "index_select",
        "lift_fresh",
        "max_pool1d",
        "max_pool2d",
        "max_pool2d_with_indices",
        "mean",
        "narrow",
        "native_channel_shuffle",
        "permute",
        "pixel_shuffle",
        "pixel_unshuffle",
        "relu",
        "relu_",
        "repeat",
        "reshape",
        "roll",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "stack",
        "t",
        "transpose",
        "unbind",
        "unsqueeze",
        "upsample_nearest2d",
        "view",
        "view_as",
    ]
)
Version = tuple[int, int]  # a tensor and its version: one that is changed in place is another


class _Followed(TorchDispatchMode):
    """A pass in which the tensors are told apart that are quantized, or come from no layer."""

    def __init__(self) -> None:
        super().__init__()
        self._quantized: set[Version] = set()
        self._behind_a_layer: set[Version] = set()
        self._held: list[Tensor] = []  # so that none's place is another's

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        taken = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        behind = any(self._place(tensor) in self._behind_a_layer for tensor in taken)
        kept = bool(taken) and all(self._place(tensor) in self._quantized for tensor in taken)
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._note(self._behind_a_layer, tensor, behind)
                keeps = func.overloadpacket.__name__ in KEEPING
                self._note(self._quantized, tensor, kept and keeps)
        return output

    def quantize(self, tensor: Tensor) -> None:
        """Take tensor as quantized from here on."""
        self._note(self._quantized, tensor, True)

    def leave_layer(self, tensor: Tensor) -> None:
        """Take tensor as what a layer has given."""
        self._note(self._behind_a_layer, tensor, True)

    def lacks(self, tensor: Tensor) -> bool:
        """Return whether tensor comes from a layer and is not quantized."""
        place = self._place(tensor)
        return place in self._behind_a_layer and place not in self._quantized

    @staticmethod
    def _place(tensor: Tensor) -> Version:
        return id(tensor), tensor._version

    def _note(self, among: set[Version], tensor: Tensor, member: bool) -> None:
        self._held.append(tensor)
        place, version = self._place(tensor)
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
