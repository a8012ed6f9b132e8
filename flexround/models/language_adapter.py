"""Transformers as chains of their layers (FlexRound, arXiv 2306.00317, sec. 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from flexround.calibration.activation_cache import ActivationCache
from flexround.calibration.calls import (
    RecordedCalls,
    StopForward,
    stopped_forward,
    stub_forward,
)
from flexround.calibration.chain import check_order, in_float, record_chain
from flexround.calibration.outputs import first_of, with_first
from flexround.models.base import ModelAdapter
from flexround.models.coverage import without_left
from flexround.models.experts import split_experts
from flexround.models.language_blocks import blocks_of
from flexround.models.layer_chain import chain_of, in_chain
from flexround.models.position_ids import with_position_ids
from flexround.models.replay_check import check_replay
from flexround.structure import Block

Tokens = Mapping[str, Tensor]  # input_ids, attention_mask, ...: [batch, tokens]


class LanguageAdapter(ModelAdapter):
    """A causal language model or an encoder; only the block at work lies on the device."""

    def __init__(
        self,
        model: nn.Module,
        example: Tokens,
        device: torch.device,
        leave: Sequence[str] = (),
    ) -> None:
        """Find the layers of model by its structure and their order by running example.

        leave names weights in them that stay in full precision.

        Raises:
            ValueError: when the layers are no chain, or hold a weight that is neither quantized nor
                left.
        """
        self.device, self.storage_device, self.leave = device, torch.device("cpu"), leave
        self.model = split_experts(model.eval().requires_grad_(False))
        config: Any = model.config
        config.use_cache = False  # a cache would grow each time that a call is replayed
        self._chain = chain_of(self.model)
        self._returns: dict[nn.Module, Any] = {}  # what each layer gives, for its form
        self._replay_is_checked = False
        with self._at_home():
            self._blocks = without_left(self._find_blocks(example), leave)
            self.coverage()
            check_order(self._modules, self._forms, self._logits, example)

    def limit(self, limits: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Have the layers of these names clip their weights when they are quantized."""
        self.change_layers(
            lambda layer: replace(layer, limits=limits.get(layer.name, layer.limits))
        )

    def forward(self, batch: Tokens) -> Tensor:
        """Return the logits of one batch.

        [batch, tokens, vocabulary], [batch, classes], or for answers in a text [batch, tokens, 2].
        """
        if not torch.compiler.is_exporting():  # a tracer can't follow it
            self.model.to(self.device)
        return self._logits(batch)

    def _logits(self, batch: Tokens, tensors: dict[str, Tensor] | None = None) -> Tensor:
        """Return the logits; tensors stand for the model's own of these names."""
        batch = with_position_ids(self.model, batch)
        given = {name: values.to(self.device) for name, values in batch.items()}
        if tensors is None:
            out = self.model(**given)
        else:
            out = functional_call(self.model, tensors, kwargs=given)
        if "start_logits" in out:
            return torch.stack([out.start_logits, out.end_logits], dim=-1)
        logits: Tensor = out.logits
        return logits

    @torch.no_grad()
    def last_outputs(self, batches: Sequence[Tokens]) -> Iterator[Tensor]:
        """Yield what the last layer gives on each batch, [batch, tokens, hidden], on the CPU."""
        for batch in batches:
            yield self.hidden(batch).cpu()

    def hidden(self, batch: Tokens) -> Tensor:
        """Return what the last layer gives on a batch, [batch, tokens, hidden], on the device."""
        self.prepare()
        return first_of(self._stopped_at(self._modules[-1], batch))

    @torch.no_grad()
    def logits_after(self, batch: Tokens, outputs: Tensor) -> Tensor:
        """Return the logits that the model's norm and head make of outputs of its last layer."""
        self.prepare()
        return self._after(None, batch, outputs)

    def _after(self, tensors: dict[str, Tensor] | None, batch: Tokens, outputs: Tensor) -> Tensor:
        """Return the logits behind the last layer's outputs; tensors as in `_logits`."""
        form = self._forms[-1]
        with self._passed(len(self._chain), with_first(form, outputs)):
            return self._logits(batch, tensors)

    def vocabulary(self) -> int | None:
        """Return how many tokens the head tells apart; None for a classifier."""
        model: Any = self.model
        head = model.get_output_embeddings()
        return None if head is None else len(head.weight)

    def head(self) -> Callable[[Tokens, Tensor], Tensor]:
        """Return what makes logits of (batch, the last layer's outputs), as it is now.

        It is the last norm and the head, on the device in float32 at least whatever the model's
        type is, and gradients reach the outputs. The layers stay where they are.
        """
        inside = tuple(f"{name}." for name in self._chain)
        stored = (*self.model.named_parameters(), *self.model.named_buffers())
        tensors = {
            name: in_float(tensor).to(self.device) for name, tensor in stored
            if not name.startswith(inside)
        }  # fmt: skip
        return partial(self._after, tensors)

    def record_calls(
        self, batches: Sequence[Tokens], cache: ActivationCache | None = None
    ) -> RecordedCalls:
        """Return the calls of the layers over the calibration batches, in float32.

        Raises:
            ValueError: when layers that are replayed one by one do not compute what the model does.
        """
        first = {name: values[:1] for name, values in batches[0].items()}
        with self._at_home():
            calls = record_chain(self._modules, self._forms, self._logits, batches, cache, first)
        if not self._replay_is_checked:
            check_replay(self, calls, first)
            self._move(self.storage_device)  # the embeddings and the head were needed
            self._replay_is_checked = True
        return calls

    @contextmanager
    def _at_home(self) -> Iterator[None]:
        """Have the model run where it is stored."""
        self._move(self.storage_device)
        device, self.device = self.device, self.storage_device
        try:
            yield
        finally:
            self.device = device

    @property
    def _modules(self) -> list[nn.Module]:
        return list(self._chain.values())

    @property
    def _forms(self) -> list[Any]:
        return in_chain(self.model, self._chain, self._returns)

    @torch.no_grad()
    def output_of(self, index: int, batch: Tokens, before: Any, widen: bool = False) -> Any:
        """Return what layer index gives while the model itself runs on batch, which ends there.

        before is what the layer in front of it has given, None for the first. With widen the layer
        is called in float32, whatever the model's own type is.
        """

        def wide(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return tree_map(in_float, (args, kwargs)) if widen else None

        module = self._modules[index]
        handle = module.register_forward_pre_hook(wide, with_kwargs=True)
        try:
            with self._passed(index, before):
                return self._stopped_at(module, batch)
        finally:
            handle.remove()

    def _stopped_at(self, module: nn.Module, batch: Tokens) -> Any:
        """Return what module gives while the model runs on batch, which ends there."""
        found = list[Any]()

        def stop(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            found.append(output)
            raise StopForward

        handle = module.register_forward_hook(stop)
        try:
            with stopped_forward():
                self._logits(batch)
        finally:
            handle.remove()
        return found[0]

    @contextmanager
    def _passed(self, count: int, output: Any) -> Iterator[None]:
        """Have the first count layers give output, [batch, tokens, hidden], as the last of them."""
        first = first_of(output)
        if count:
            first = first.to(self.device)
        with ExitStack() as stack:
            for module in self._modules[:count]:
                stack.enter_context(stub_forward(module, with_first(output, first)))
            yield

    def prepare(self) -> None:
        """Have on the device all that `output_of` needs besides the layer itself."""
        self._move(self.device)

    def _move(self, device: torch.device) -> None:
        self.model.to(device)

    def num_samples(self, batch: Tokens) -> int:
        """Return how many sequences a batch holds."""
        return len(batch["input_ids"])

    def loss_mask(self, batches: Sequence[Tokens]) -> Tensor | None:
        """Return which tokens are no padding, [samples, tokens], or None where all are."""
        if any("attention_mask" not in batch for batch in batches):
            return None
        mask = torch.cat([batch["attention_mask"] for batch in batches]).bool()
        return None if mask.all() else mask

    def _see_output(self, module: nn.Module, _: Any, output: Any) -> None:
        self._returns[module] = output

    def _try(self, example: Tokens) -> None:
        """Call every layer once."""
        self.model(**{name: values.to(self.device) for name, values in example.items()})

    def _find_blocks(self, example: Tokens) -> list[Block]:
        handles = [module.register_forward_hook(self._see_output) for module in self._modules]
        blocks = blocks_of(self.model, self._chain, lambda: self._try(example))
        for handle in handles:
            handle.remove()
        return blocks
