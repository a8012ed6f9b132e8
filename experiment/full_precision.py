"""Full-precision metrics and outputs, which all runs on one network share.

Entries are found by the content of what they depend on: every weight, every calibration tensor, all
that is measured on, the code that computes it, and what decides the last bits of a sum (kind of
device, threads, batch size, versions). No path is among it: what changes under its path never lends
its old value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic_core import from_json
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from experiment.conditions import versions
from experiment.content import Stamps, bytes_of
from experiment.device import kind_of
from experiment.shared_cache import Cache, key_of
from experiment.shared_tensors import SharedOutputs, SharedSearches
from experiment.task_checks import check_metric
from flexround.calibration.activation_cache import ActivationCache, FullPrecisionOutputs
from flexround.models.base import ModelAdapter
from tasks.base import Task

# The settings that decide what the evaluation of a network gives.
EVALUATION = ("task", "protocol", "preprocessing")


class FullPrecision:
    """The shared part of a run, made before anything is quantized.

    Attributes:
        network: the digest of the network as it is here: as it was loaded, or as a transform has
            left it.
    """

    def __init__(
        self,
        cache: Cache,
        adapter: ModelAdapter,
        calibration: Sequence[Any],
        task: Task,
        batch_size: int,
        stream_dtype: str = "float32",
        *,
        code: str,
    ) -> None:
        self._cache, self._adapter, self._calibration = cache, adapter, calibration
        self._task = task
        # What else decides the last bits of a block's outputs.
        self._sums = [batch_size] if stream_dtype == "float32" else [batch_size, stream_dtype]
        self.network = digest_of_model(adapter.model, adapter.state())
        self._machine = {
            "device": kind_of(adapter.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "versions": versions(),
            "code": code,
            "config": _config(adapter.model),
        }

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self._adapter.device

    @cached_property
    def samples(self) -> str:
        """The digest of the calibration samples."""
        return digest_of(self._calibration)

    @cached_property
    def evaluation_data(self) -> str | None:
        """The digest of what the task measures on; None where it does not say.

        Reading thousands of files may take as long as evaluating a small network, so that what
        they hold is looked at once for the same sizes and times.
        """
        task, files = self._task, Stamps()
        data = task.evaluation_data()
        if data is None:
            return None
        found = digest_of(data, files.of)
        if not files.seen:
            return found

        def make() -> bytes:
            again = task.evaluation_data()
            assert again is not None, "it was there a moment ago"
            return digest_of(again).encode()

        key = key_of("evaluation data", found)
        return (self._cache.get(key, make, _is_digest) if files.settled else make()).decode()

    def metrics(self, settings: dict[str, Any]) -> dict[str, float]:
        """Return the metrics of the unquantized model under settings.

        Those of a task that does not say what it measures on are never shared.

        Raises:
            ValueError: when they are evaluated now, and lack the task's metric or are refused by
                its check_full_precision.
        """
        task, data = self._task, self.evaluation_data
        key = self._key_of("metrics", settings)

        def make() -> bytes:
            metrics = task.evaluate_reference(self._adapter)
            check_metric(task, metrics, "the evaluation in full precision")
            # Some of it sees more than the metrics, which are all that the next run will find.
            task.check_full_precision(metrics)
            return json.dumps(metrics).encode()

        held = make() if data is None else self._cache.get(key, make, _is_metrics)
        metrics: dict[str, float] = json.loads(held)
        return metrics

    def reference(self, settings: dict[str, Any], held: ActivationCache) -> Tensor | None:
        """Return what the task compares the quantized network with; None where it does not.

        It is held as held says, but in the network's own type; runs share it while it takes a
        quarter of the cache at most.
        """
        task = self._task
        parts = task.compared(self._adapter)
        if parts is None:
            return None
        exact = replace(held, dtype=None)
        key = self._key_of("reference", settings)
        return SharedOutputs(self._cache, key, 2).get(0, lambda: exact.store(parts))

    def searches(self, seen: Sequence[Any], *of: Any) -> SharedSearches:
        """Return what finds a transform's searches on the samples that it sees.

        of is what else decides what they find, values of JSON.
        """
        own = self.network, digest_of(seen), self._sums, self._machine
        key = key_of("searches", *own, *of)
        return SharedSearches(self._cache, key, len(self._adapter.blocks()))

    def _key_of(self, kind: str, settings: dict[str, Any]) -> str:
        """Return the key of what the network gives on the evaluation data under settings."""
        parts = {name: settings.get(name) for name in EVALUATION}
        data = self.evaluation_data
        return key_of(kind, self.network, parts, self._task.version, data, self._machine)

    def outputs(self) -> FullPrecisionOutputs:
        """Return the blocks' full-precision outputs on the calibration samples."""
        blocks = len(self._adapter.blocks())
        key = key_of("targets", self.network, self.samples, self._sums, self._machine, blocks)
        return SharedOutputs(self._cache, key, blocks)


def digest_of_model(model: nn.Module, state: Iterable[tuple[str, Tensor]]) -> str:
    """Return a hash of model's structure and of its state, all that is stored in it by name."""
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in state:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def digest_of(data: Iterable[Any], of_file: Callable[[Path], str] = bytes_of) -> str:
    """Return a hash of tensors, texts, numbers and files in any nesting, in their order.

    of_file gives what a path stands for: what the file holds.
    """
    digest = hashlib.sha256()
    for item in data:
        leaves, structure = tree_flatten(item)
        digest.update(f"{structure}\n".encode())
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                digest.update(f"{leaf.dtype} {tuple(leaf.shape)}\n".encode())
                digest.update(_bytes(leaf))
            elif isinstance(leaf, Path):
                digest.update(f"{of_file(leaf)}\n".encode(errors="surrogatepass"))
            else:
                digest.update(f"{leaf!r}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _is_digest(data: bytes) -> bool:
    """Return whether data is what `FullPrecision.evaluation_data` keeps."""
    return len(data) == 64 and all(byte in b"0123456789abcdef" for byte in data)


def _is_metrics(data: bytes) -> bool:
    """Return whether data is what `FullPrecision.metrics` keeps."""
    try:
        found = from_json(data)
    except ValueError:
        return False
    return isinstance(found, dict) and all(isinstance(v, int | float) for v in found.values())


def _config(model: nn.Module) -> dict[str, Any]:
    """Return what the configuration of a transformers model says besides where it came from.

    The same weights give other outputs under other frequencies of the rotary embedding, and other
    classes under another id2label.
    """
    config: Any = getattr(model, "config", None)
    text = config.to_json_string(use_diff=False) if hasattr(config, "to_json_string") else "{}"
    found: dict[str, Any] = json.loads(text)
    return {k: v for k, v in found.items() if k not in ("_name_or_path", "transformers_version")}


def _bytes(tensor: Tensor) -> memoryview:
    flat: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)
