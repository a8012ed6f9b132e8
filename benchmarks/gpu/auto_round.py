"""The same block by auto-round (SignRound's authors), where it is installed: seconds and peak."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch

from benchmarks.gpu.context import Context, Row
from benchmarks.gpu.memory import FEW, SAMPLES
from benchmarks.gpu.shapes import GIB, Shape, llama31_8b

MISSING = "auto-round is not installed here; pip install auto-round==0.16.1 brings it"
RUNS = ((FEW, False), (200, False), (FEW, True), (200, True))  # iterations, compiled


class _NoTokenizer:
    """The tokenizer that auto-round asks for and, given tokens, does not use."""


def rows(context: Context) -> Iterator[Row]:
    """Yield what auto-round takes with few iterations and with its default of 200."""
    if importlib.util.find_spec("auto_round") is None:
        yield context.refused({"auto-round": None}, MISSING)
        return
    shape = llama31_8b(context.tiny, SAMPLES)
    for iters, compile_ in ((2, False),) if context.tiny else RUNS:
        facts: Row = {
            "auto-round": version("auto-round"), "iterations": iters, "compile": compile_,
        }  # fmt: skip
        refusal = shape.refusal(context.free_gib())
        if refusal is not None:
            yield context.refused(facts, refusal)
            continue
        seconds = 15 + 0.15 * iters + (20 if compile_ else 0)
        yield context.row(
            facts, seconds,
            lambda iters=iters, compile_=compile_: _measured(shape, context, iters, compile_),
        )  # fmt: skip


def _measured(shape: Shape, context: Context, iters: int, compile_: bool) -> Row:
    """Return auto-round's seconds and, on a card, its peak in GiB."""
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(shape.config(), dtype=torch.bfloat16)
    tokens = torch.randint(0, 100, (shape.samples, shape.tokens))
    ones = torch.ones(1, shape.tokens, dtype=torch.long)
    data = [{"input_ids": row[None], "attention_mask": ones} for row in tokens]
    if context.cuda:
        torch.cuda.reset_peak_memory_stats(context.device)
    start = time.perf_counter()
    rounding: Any = AutoRound(
        network, tokenizer=_NoTokenizer(), bits=4, group_size=16 if context.tiny else 128,
        sym=False, iters=iters, nsamples=shape.samples, seqlen=shape.tokens,
        batch_size=shape.batch_size, dataset=data, enable_torch_compile=compile_,
        device_map=str(context.device), low_gpu_mem_usage=False,
    )  # fmt: skip
    rounding.quantize()
    if context.cuda:
        torch.cuda.synchronize(context.device)
    row: Row = {"whole, s": time.perf_counter() - start}
    if context.cuda:
        row["whole, GiB"] = torch.cuda.max_memory_allocated(context.device) / GIB
    return row
