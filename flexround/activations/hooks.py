"""Hooks on all of a model's activation sites, switched on and off together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flexround.activations.quantizers import ActivationQuantizer
from flexround.activations.schemes import Activation
from flexround.ranges import Ranges
from flexround.structure import Block, Site


class Activations:
    """Hooks at every site. Off, the model computes as it is; on, its activations are quantized.

    With a quant_prob below 1 each element is quantized with that probability and left as it is
    otherwise (QDrop, arXiv 2203.05740).

    Attributes:
        init_samples: calibration samples that set the ranges, 0 where none do.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        activation: Activation,
        ranges: Ranges,
        generator: torch.Generator,
    ) -> None:
        """Make a quantizer for each site of blocks; generator decides what is quantized."""
        self.init_samples = activation.init_samples
        self._on, self._quant_prob = False, 1.0
        self._generator = generator
        self._block = ""
        self._calls: dict[nn.Module, int] = {}
        self._cache: dict[str, tuple[Tensor, int, Tensor]] = {}
        self._by_block: dict[str, list[ActivationQuantizer]] = {}
        by_module: dict[nn.Module, list[tuple[str, Site, ActivationQuantizer]]] = {}
        for block in blocks:
            used = [s for s in block.sites if s.role != "kv" or activation.kv_bits is not None]
            made = [activation.quantizer(site.name, site.role, ranges) for site in used]
            self._by_block[block.name] = made
            for site, quantizer in zip(used, made, strict=True):
                for module in site.modules:
                    by_module.setdefault(module, []).append((block.name, site, quantizer))
            # Not the bound method: a copy of the block would take a copy of this object along.
            block.module.register_forward_pre_hook(lambda *_, name=block.name: self._begin(name))
        for module, places in by_module.items():
            self._hook(module, places)

    def of(self, block: str) -> list[ActivationQuantizer]:
        """Return the quantizers of a block by its name, in the order of its sites."""
        return self._by_block[block]

    def quantizers(self) -> list[ActivationQuantizer]:
        """Return all quantizers, block by block."""
        return [quantizer for block in self._by_block.values() for quantizer in block]

    @torch.no_grad()
    def start(
        self, block: str, run: Callable[[Tensor], object], samples: int
    ) -> list[ActivationQuantizer]:
        """Set the ranges of a block's activations on calibration samples; return its quantizers.

        run passes the samples of the given indices through the block.

        Raises:
            ValueError: when an activation is not finite, or a site never sees one.
        """
        if self.init_samples:
            with self.on():
                run(torch.arange(min(self.init_samples, samples)))
        for quantizer in self.of(block):
            if not quantizer.initialized:
                raise ValueError(f"activation {quantizer.name}: no sample reaches it")
        return self.of(block)

    def leave_on(self) -> None:
        """Quantize all activations from now on."""
        self._on, self._quant_prob = True, 1.0

    @contextmanager
    def on(self, quant_prob: float = 1.0) -> Iterator[None]:
        """Quantize activations, each element with probability quant_prob, while in the context."""
        before = self._on, self._quant_prob
        self._on, self._quant_prob = True, quant_prob
        try:
            yield
        finally:
            self._on, self._quant_prob = before
            self._cache.clear()

    def _begin(self, block: str) -> None:
        # Calls are counted within a block: a module may serve several, and a pass that was cut
        # short must not shift the counts of the next.
        self._block = block
        self._calls.clear()
        self._cache.clear()

    def _hook(
        self, module: nn.Module, places: Sequence[tuple[str, Site, ActivationQuantizer]]
    ) -> None:
        inputs = [quantizer for _, site, quantizer in places if site.side == "input"]
        if inputs:
            (quantizer,) = inputs  # a layer is called once in a pass
            module.register_forward_pre_hook(self._before(quantizer))
        outputs = {
            (block, site.use): quantizer
            for block, site, quantizer in places
            if site.side == "output"
        }
        if outputs:
            module.register_forward_hook(self._after(module, outputs))

    def _before(self, quantizer: ActivationQuantizer) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> Any:
            return (self._quantize(quantizer, args[0]), *args[1:]) if self._on else None

        return hook

    def _after(
        self, module: nn.Module, here: dict[tuple[str, int], ActivationQuantizer]
    ) -> Callable[..., Any]:
        uses = Counter(block for block, _ in here)

        def hook(_: nn.Module, args: Any, output: Any) -> Any:
            if not self._on or self._block not in uses:
                return None
            # Modulo: outside of its block a function is called once more on the block's output.
            use = self._calls.get(module, 0) % uses[self._block]
            self._calls[module] = use + 1
            quantizer = here[self._block, use]
            whole = isinstance(output, tuple)
            quantized = self._quantize(quantizer, output[0] if whole else output)
            return (quantized, *output[1:]) if whole else quantized

        return hook

    def _quantize(self, quantizer: ActivationQuantizer, x: Tensor) -> Tensor:
        # Query, key and value take one tensor, which is quantized once, and dropped alike.
        held, version = self._cache.get(quantizer.name), -1 if x.is_inference() else x._version
        if held is not None and held[0] is x and held[1] == version:
            return held[2]
        quantized: Tensor = quantizer(x, self._quant_prob, self._generator)
        self._cache[quantizer.name] = x, version, quantized
        return quantized
