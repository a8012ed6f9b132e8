"""llm-compressor: GPTQ, and round-to-nearest without data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.child import Job, layers_of


def start(job: Job) -> Any:
    """Return (network, calibration data, recipe)."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot  # noqa: F401 - so that it is not measured
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    args = QuantizationArgs(
        num_bits=job.bits, type="int", symmetric=False, strategy="group", group_size=job.group_size
    )
    scheme = {"weights": QuantizationScheme(targets=["Linear"], weights=args)}
    settings = dict(job.settings)
    if settings.pop("method") == "rtn":
        recipe: Any = QuantizationModifier(config_groups=scheme, ignore=["lm_head"], **settings)
        return job.load(), None, recipe
    tokens = job.calibration()
    data = Dataset.from_dict(
        {"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()}
    )
    recipe = GPTQModifier(config_groups=scheme, ignore=["lm_head"], **settings)
    return job.load(), (data, tokens.shape, job.batch_size), recipe


def run(started: Any) -> object:
    """Quantize the network in place."""
    from llmcompressor import oneshot

    network, data, recipe = started
    if data is None:
        return oneshot(model=network, recipe=recipe)
    rows, (samples, length), batch_size = data
    return oneshot(
        model=network, recipe=recipe, dataset=rows, max_seq_length=length, batch_size=batch_size,
        num_calibration_samples=samples, shuffle_calibration_samples=False,
    )  # fmt: skip


def weights(started: Any) -> dict[str, Tensor]:
    """Return the weights on the grid of the scales that it has attached to each layer."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    return {
        name: fake_quantize(
            layer.weight, layer.weight_scale, layer.weight_zero_point,
            layer.quantization_scheme.weights,
        )
        for name, layer in layers_of(started[0]).items()
    }  # fmt: skip
