"""Hooks on all of a model's activation sites, switched on and off together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flexround.activations.quantizers import ActivationQuantizer
from flexround.activations.schemes import Activation
from flexround.calibration.outputs import first_of, with_first
from flexround.ranges import Ranges
from flexround.structure import Block, Site, counted


class _Hook(partial[Any]):
    """A hook that a copy of its module shares, as it would a plain function; it can be pickled."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        """Return this one: a copy of a block must not take a copy of all quantizers along."""
        return self


class Activations:
    """Hooks at every site. Off, the model computes as it is; on, its activations are quantized.

    With a quant_prob below 1 each element is quantized with that probability and left as it is
    otherwise (QDrop, arXiv 2203.05740).

    Attributes:
        init_samples: calibration samples that set the ranges, 0 where none do.
        ranges_from: quant where a range is set by what the quantizers before it leave, fp where by
            the full-precision network.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        activation: Activation,
        ranges: Ranges,
        generator: torch.Generator,
        mask: Tensor | None = None,
    ) -> None:
        """Make a quantizer for each site of blocks; generator decides what is quantized.

        mask [samples, tokens] tells which tokens of the calibration set are no padding, of which no
        range is made; None where all count.
        """
        self.init_samples, self.ranges_from = activation.init_samples, activation.ranges_from
        self._on, self._quant_prob = False, 1.0
        self._share: float | None = None  # of what is to be observed, in a pass that observes
        self._generator, self._mask = generator, mask
        self._counts: Tensor | None = None  # of the mask, the samples that set a range
        self._layers = {layer.module: layer for block in blocks for layer in block.layers}
        self._block = ""
        self._calls: dict[tuple[str, nn.Module], int] = {}
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
            block.module.register_forward_pre_hook(_Hook(self._begin, block.name))
            block.module.register_forward_hook(_Hook(self._end))
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

        run passes the samples of the given indices through the block. Those in front quantize what
        the next ones see. Ranges that are set already stay.

        Raises:
            ValueError: when an activation is not finite, or a site never sees one.
        """
        if not all(quantizer.initialized for quantizer in self.of(block)):
            with self.on():
                self._run(run, torch.arange(min(self.init_samples, samples)))
        return self._initialized(block)

    @torch.no_grad()
    def start_unquantized(
        self, block: str, run: Callable[[Tensor], object], samples: int, batch_size: int
    ) -> None:
        """Set the same ranges on activations that nothing quantizes, batch_size samples at a time.

        Raises:
            ValueError: when an activation is not finite, or a site never sees one.
        """
        if all(quantizer.initialized for quantizer in self.of(block)):
            return
        for batch in torch.arange(samples).split(batch_size):
            self._share = len(batch) / samples
            try:
                self._run(run, batch)
            finally:
                self._share = None
                self._cache.clear()
        for quantizer in self.of(block):
            quantizer.set_range()
        self._initialized(block)

    def _run(self, run: Callable[[Tensor], object], samples: Tensor) -> None:
        """Have run pass the samples of these indices, of which those that count are known."""
        self._counts = None if self._mask is None else self._mask[samples]
        try:
            run(samples)
        finally:
            self._counts = None

    def _initialized(self, block: str) -> list[ActivationQuantizer]:
        for quantizer in self.of(block):
            if not quantizer.initialized:
                raise ValueError(
                    f"activation {quantizer.name}: no calibration sample reaches it; raise "
                    "num_samples and activation.init_samples"
                )
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

    def _begin(self, block: str, *_: Any) -> None:
        # Calls are counted within a block: a module may serve several, and a pass that was cut
        # short must not shift the counts of the next.
        self._block = block
        self._calls.clear()
        self._cache.clear()

    def _end(self, *_: Any) -> None:
        # Or the last block's activations would stay, and what they were computed from with them.
        self._cache.clear()

    def _hook(
        self, module: nn.Module, places: Sequence[tuple[str, Site, ActivationQuantizer]]
    ) -> None:
        for side in ("input", "output"):
            here: dict[str, dict[int, ActivationQuantizer]] = {}  # by block and use
            for block, site, quantizer in places:
                if site.side == side:
                    here.setdefault(block, {})[site.use] = quantizer
            if here and side == "input":
                module.register_forward_pre_hook(_Hook(self._before, module, here))
            elif here:
                module.register_forward_hook(_Hook(self._after, module, here))

    def _before(
        self,
        module: nn.Module,
        here: dict[str, dict[int, ActivationQuantizer]],
        _: nn.Module,
        args: tuple[Any, ...],
    ) -> Any:
        if not self._working or self._block not in here:
            return None
        own, use = here[self._block], self._count("input", module)
        if use not in own:
            first = next(iter(own.values()))
            raise ValueError(
                f"activation {first.name}: its layer is called more than the {len(own)} times in a "
                "pass that it was while the network was looked at; give activation=none"
            )
        return (self._shared(own[use], args[0], module), *args[1:])

    def _after(
        self,
        module: nn.Module,
        here: dict[str, dict[int, ActivationQuantizer]],
        _: nn.Module,
        args: Any,
        output: Any,
    ) -> Any:
        if not self._working or self._block not in here:
            return None
        own = here[self._block]
        # Modulo: outside of its block a function is called once more on the block's output.
        quantizer = own[self._count("output", module) % len(own)]
        return with_first(output, self._quantize(quantizer, first_of(output), module))

    @property
    def _working(self) -> bool:
        return self._on or self._share is not None

    def _count(self, side: str, module: nn.Module) -> int:
        """Return which of module's calls in the pass of a block it is, from 0."""
        use = self._calls.get((side, module), 0)
        self._calls[side, module] = use + 1
        return use

    def _shared(self, quantizer: ActivationQuantizer, x: Tensor, module: nn.Module) -> Tensor:
        # Query, key and value take one tensor, which is quantized once, and dropped alike. What a
        # module gives is its own, and where its function is called behind the block's end nothing
        # would clear it.
        held, version = self._cache.get(quantizer.name), -1 if x.is_inference() else x._version
        if held is not None and held[0] is x and held[1] == version:
            return held[2]
        quantized = self._quantize(quantizer, x, module)
        self._cache[quantizer.name] = x, version, quantized
        return quantized

    def _quantize(self, quantizer: ActivationQuantizer, x: Tensor, module: nn.Module) -> Tensor:
        if not quantizer.initialized:
            seen = counted(self._layers.get(module), x, self._counts)
            quantizer.observe(seen, self._share or 1.0, self._generator)
            if self._share is None:
                quantizer.set_range()
        unseen = self._counts is not None and not quantizer.initialized
        if self._share is not None or unseen:  # an expert of padding alone has no range from that
            return x
        quantized: Tensor = quantizer(x, self._quant_prob, self._generator)
        return quantized
