"""Walk over the blocks of a language model with the places where scales fold in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flexround.models.language_adapter import LanguageAdapter
from flexround.reconstruction.block_walk import BlockAtWork, Walk, block_walk
from flexround.solvers.hessian import Hessians
from flexround.structure import counted
from flexround.transforms.base import Calibration
from flexround.transforms.finding import Heads, find_places
from flexround.transforms.places import Place, check_covered


@dataclass(frozen=True)
class PlacesAtWork:
    """A block on the device with its places.

    Attributes:
        mask: which tokens count, [samples, tokens], or None where all do.
    """

    work: BlockAtWork
    places: Sequence[Place]
    batch_size: int
    device: torch.device
    mask: Tensor | None

    @torch.no_grad()
    def watch(
        self,
        places: Sequence[Place],
        see: Callable[[Place, Tensor], None],
        hessians: Hessians | None = None,
    ) -> None:
        """Have see look at what the layers of each place take, [..., in], batch by batch.

        hessians, where there are some, collect in the same pass.
        """
        block, calls = self.work.block, self.work.plain
        for batch in torch.arange(len(calls)).split(self.batch_size):
            mask = None if self.mask is None else self.mask[batch]

            def hook(place: Place, mask: Tensor | None = mask) -> Callable[..., None]:
                layer = place.layers[0]

                def look(_: nn.Module, args: tuple[Any, ...]) -> None:
                    see(place, counted(layer, args[0], mask))

                return look

            handles = [
                place.layers[0].module.register_forward_pre_hook(hook(place)) for place in places
            ]
            try:
                with nullcontext() if hessians is None else hessians.collecting(mask):
                    calls.replay(block.module, batch, self.device)
            finally:
                for handle in handles:
                    handle.remove()


def places_walk(
    adapter: LanguageAdapter, calibration: Calibration, name: str
) -> Iterator[AbstractContextManager[PlacesAtWork]]:
    """Yield, for every block in order, the context in which it is at work with its places.

    name is the transform's.

    Raises:
        ValueError: when a layer that reads the stream has nothing in front of it to fold into.
    """
    heads = Heads.of(adapter.model.config)
    mask = adapter.loss_mask(calibration.batches)
    walk = Walk(adapter, calibration.batches, calibration.cache, calibration.batch_size)
    names = {module: name for name, module in adapter.model.named_modules()}

    @contextmanager
    def at_work(inside: AbstractContextManager[BlockAtWork]) -> Iterator[PlacesAtWork]:
        with inside as work:
            block, calls = work.block, work.plain

            @torch.no_grad()
            def run() -> Tensor:
                return calls.replay(block.module, torch.arange(1), adapter.device)

            places = find_places(block, names, heads, run)
            check_covered(block, places, calls.inputs.shape[-1], name)
            yield PlacesAtWork(work, places, calibration.batch_size, adapter.device, mask)

    for inside in block_walk(walk):
        yield at_work(inside)
