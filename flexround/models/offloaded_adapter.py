"""Adapter of a language model larger than memory: one block at a time is read and let go of.

Between its turns a block's weights are on torch's meta device: shapes without storage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flexround.calibration.activation_cache import ActivationCache
from flexround.calibration.disk_tensors import DiskTensors
from flexround.calibration.outputs import first_of, with_first
from flexround.grid import QuantizedTensor
from flexround.models.checkpoint_shards import Shards
from flexround.models.experts import is_fused
from flexround.models.language_adapter import LanguageAdapter, Tokens
from flexround.models.layer_chain import chain_of
from flexround.structure import Block
from flexround.utils.memory import give_back


class OffloadedAdapter(LanguageAdapter):
    """A LanguageAdapter that holds one block, the embeddings and the head.

    Full-precision blocks come from the checkpoint's files. Those that have been quantized, and the
    integers, lie in files without a name where streams spill to.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tokens,
        device: torch.device,
        shards: Shards,
        cache: ActivationCache,
        leave: Sequence[str] = (),
    ) -> None:
        """Read all of model, on the meta device so far, but the blocks.

        Raises:
            ValueError: when shards lack a tensor (names it), nothing can be spilled, or experts are
                held together, which files hold one by one.
        """
        if any(is_fused(module) for module in model.modules()):
            raise ValueError(
                f"offload=true reads no mixture of experts ({type(model).__name__}); give "
                "offload=false"
            )
        assert cache.spill is not None, "there is where to keep what is quantized"
        self._spill: DiskTensors = cache.spill
        self._spill.check_writable()
        # What is evaluated keeps its own type.
        self._shards, self._cache = shards, replace(cache, dtype=None)
        self._kept: dict[nn.Module, dict[str, Tensor]] = {}
        self._chain = chain_of(model)
        self._types: dict[nn.Module, dict[str, torch.dtype]] = {}
        state = model.state_dict()
        inside = {f"{name}.{key}": key for name, m in self._chain.items() for key in m.state_dict()}
        rest = {n: t for n, t in state.items() if n not in inside and shards.stored(n) is not None}
        shards.check_tensors(
            {name: t for name, t in state.items() if name in inside or name in rest}
        )
        read = {name: t.to(rest[name].dtype, copy=True) for name, t in shards.read(rest).items()}
        model.load_state_dict(read, strict=False, assign=True)
        model.tie_weights()  # type: ignore[operator]
        held = model.state_dict()
        shards.check_tensors({n: t for n, t in held.items() if t.is_meta and n not in inside})
        super().__init__(model, example, device, leave)

    @contextmanager
    def onloaded(self, block: Block) -> Iterator[None]:
        """Have block's weights in memory, as they were kept last, until the context ends."""
        with self._present(block.name, block.module):
            yield

    @contextmanager
    def _present(self, name: str, module: nn.Module) -> Iterator[None]:
        own = {key: t.dtype for key, t in module.state_dict().items()}
        self._types[module] = own
        tensors = self._current(name, module, own)
        module.load_state_dict({k: t.to(own[k], copy=True) for k, t in tensors}, assign=True)
        try:
            yield
        finally:
            self.release(module)
            give_back()

    def _current(
        self, name: str, module: nn.Module, keys: Iterable[str]
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights of a block as they are now, by name in it; they lie in a file."""
        if module in self._kept:
            yield from self._kept[module].items()
            return
        found = self._shards.read([f"{name}.{key}" for key in keys])
        yield from ((full.removeprefix(f"{name}."), tensor) for full, tensor in found.items())

    def commit(
        self, block: Block, integers: dict[str, QuantizedTensor]
    ) -> dict[str, QuantizedTensor]:
        """Have the weights of a block at work as they are now in all that follows.

        Return its integers, their codes in a file.
        """
        own = self._types[block.module]
        self._kept[block.module] = {
            key: self._spill.write([tensor.to(own[key])])
            for key, tensor in block.module.state_dict().items()
        }
        return {
            name: replace(held, codes=self._spill.write([held.codes]))
            for name, held in super().commit(block, integers).items()
        }

    def release(self, module: nn.Module) -> None:
        """Let go of the weights of a block or of a copy of one."""
        empty = {key: torch.empty_like(t, device="meta") for key, t in module.state_dict().items()}
        module.load_state_dict(empty, assign=True)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all that the model stores, by name; of the blocks what is there now."""
        names = {
            f"{name}.{key}": (name, module, key)
            for name, module in self._chain.items()
            for key in module.state_dict()
        }
        for full, tensor in self.model.state_dict().items():
            if full in names:
                name, module, key = names[full]
                held = dict(self._current(name, module, [key]))[key]
                yield full, held.to(tensor.dtype)
            else:
                yield full, tensor

    def forward(self, batch: Tokens) -> Tensor:
        """Return the logits of one batch; `outputs` of many reads the model only once."""
        return next(self.outputs([batch]))

    @torch.no_grad()
    def outputs(self, batches: Iterable[Tokens]) -> Iterator[Tensor]:
        """Yield the logits on each batch: all of them pass a block before the next is read."""
        batches = list(batches)
        for batch, output in zip(batches, self._through_all(batches), strict=True):
            with self._passed(len(self._chain), output):
                logits = self._logits(batch)
            yield logits

    def last_outputs(self, batches: Sequence[Tokens]) -> Iterator[Tensor]:
        """Yield what the last layer gives on each batch, [batch, tokens, hidden]."""
        yield from map(first_of, self._through_all(batches))

    @torch.no_grad()
    def _through_all(self, batches: Sequence[Tokens]) -> list[Any]:
        """Return what the last block gives on each batch."""
        self._move(self.device)
        hidden: list[Any] = [None] * len(batches)
        for index, (name, module) in enumerate(self._chain.items()):
            with self._present(name, module):
                module.to(self.device)
                hidden = self._pass(index, batches, hidden)
        return hidden

    def _pass(self, index: int, batches: Sequence[Tokens], hidden: Sequence[Any]) -> list[Any]:
        """Return what the block at index makes of each batch, hidden being its inputs."""
        shapes: list[torch.Size] = []
        ends: list[Any] = []

        def outputs() -> Iterator[Tensor]:
            for batch, before in zip(batches, hidden, strict=True):
                output = self.output_of(index, batch, before)
                ends.append(with_first(output, None))
                first = first_of(output)
                shapes.append(first.shape)
                yield first.flatten(0, -2).to(self.storage_device)  # batches differ in their length

        whole = self._cache.store(outputs())
        parts = whole.split([shape[:-1].numel() for shape in shapes])
        firsts = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        return [with_first(end, first) for end, first in zip(ends, firsts, strict=True)]

    def _try(self, example: Tokens) -> None:
        self.forward(example)

    def _move(self, device: torch.device) -> None:
        """Send all but the blocks to device."""
        blocks = {id(sub) for module in self._chain.values() for sub in module.modules()}
        for module in self.model.modules():
            if id(module) not in blocks:
                module._apply(lambda tensor: tensor.to(device), recurse=False)
