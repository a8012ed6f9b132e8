"""Memory of a run: a model larger than its limit, and activations on disk.

`python -m benchmarks.memory` makes a LLaMA of random weights in several files and quantizes it in
processes that may take half of its size on top of what their libraries take, with offload and
without. `python -m benchmarks.memory streams GIB FOLDER` prints the peak of one run on a tiny
model with a stream of 128 MiB, of which GIB may be in memory (inf is no limit), the rest in FOLDER.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from flexround.calibration.activation_cache import ActivationCache
from flexround.calibration.disk_tensors import DiskTensors
from flexround.grid import Grid, PerChannel
from flexround.models.base import ModelAdapter
from flexround.models.checkpoint_shards import INDEX
from flexround.models.language_adapter import LanguageAdapter
from flexround.models.offloaded_adapter import OffloadedAdapter
from flexround.quantizers.flexround import FlexRound
from flexround.quantizers.rtn import RTN
from flexround.ranges import MinMax
from flexround.reconstruction.reconstruction import Reconstruction
from flexround.utils.memory import STATUS, is_shortage, proc_bytes
from tasks.language import pretrained, tiny_families, tiny_models

CPU, VOCABULARY, MIB = torch.device("cpu"), 1024, 2**20
SHAPE = dict(
    vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1408, num_hidden_layers=48,
    num_attention_heads=8, num_key_value_heads=8, tie_word_embeddings=False,
)  # fmt: skip
SHORT = Reconstruction(
    unit="block", iters=2, lr=1e-3, batch_size=2, schedule="constant", inputs="quant",
    act_steps="start", act_lr=1e-3, act_iters=0, act_inputs="quant",
    quant_prob=0.5, keep_best=False, precision="float32", compile=False,
)  # fmt: skip
METHODS = {
    "rtn": RTN,
    "flexround": partial(FlexRound, learn_s1=True, use_s3=True, use_s4=True),
}
AUTO = transformers.AutoModelForCausalLM


def make_model(folder: Path) -> int:
    """Write a LLaMA of random float32 weights, one file a layer; return its size in bytes."""
    config = transformers.LlamaConfig(**SHAPE)
    with torch.device("meta"):
        shapes = AUTO.from_config(config).state_dict()
    files: dict[str, list[str]] = {}
    for name in shapes:
        inside = name.startswith("model.layers.")
        layer = name.split(".")[2] if inside else "rest"
        files.setdefault(f"model-{layer}.safetensors", []).append(name)
    draws, size = torch.Generator().manual_seed(0), 0
    for file, names in files.items():
        held = {
            n: torch.ones(shapes[n].shape) if shapes[n].dim() == 1  # the norms
            else torch.randn(shapes[n].shape, generator=draws) * 0.02
            for n in names
        }  # fmt: skip
        size += sum(tensor.nbytes for tensor in held.values())
        save_file(held, folder / file, {"format": "pt"})
    where = {name: file for file, names in files.items() for name in names}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    config.save_pretrained(folder)
    tiny_models.tokenizer(pairs=False).save_pretrained(folder)
    return size


@contextmanager
def peak() -> Iterator[list[int]]:
    """Yield a list that in the end holds the most anonymous memory taken on top, in bytes."""
    before, seen, found = proc_bytes(STATUS, "RssAnon"), [0], []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            seen[0] = max(seen[0], proc_bytes(STATUS, "RssAnon") - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        found.append(seen[0])


def perplexity(adapter: ModelAdapter, windows: torch.Tensor) -> float:
    """Return the perplexity of windows [windows, tokens]."""
    parts, losses = windows.split(2), []
    for part, logits in zip(parts, adapter.outputs({"input_ids": p} for p in parts), strict=True):
        own, following = logits[:, :-1].flatten(0, 1).float(), part[:, 1:].flatten()
        losses.append(nn.functional.cross_entropy(own, following))
    return math.exp(torch.stack(losses).mean().item())


def quantize(folder: Path, method: str, offload: bool) -> list[float]:
    """Return the perplexity of random tokens before and after 4 bits a weight."""
    example = {"input_ids": torch.arange(8).view(2, 4)}
    tokens = torch.randint(VOCABULARY, (4, 64), generator=torch.Generator().manual_seed(0))
    streams = ActivationCache(limit_gib=0.01, spill=DiskTensors(folder / "spill"))
    adapter: LanguageAdapter
    if offload:
        network, _, shards = pretrained.outline(AUTO, str(folder))
        adapter = OffloadedAdapter(network, example, CPU, shards, streams)
    else:
        network, _ = pretrained.load(AUTO, str(folder))
        adapter = LanguageAdapter(network, example, CPU)
    with torch.no_grad():
        before = perplexity(adapter, tokens)
    SHORT(
        adapter, [{"input_ids": tokens}], quantizer=METHODS[method], ranges=MinMax(),
        grid=Grid(4, False, PerChannel()), generator=torch.Generator().manual_seed(0),
        cache=streams,
    )  # fmt: skip
    with torch.no_grad():
        return [before, perplexity(adapter, tokens)]


def limited(folder: str, method: str, offload: str, limit: str) -> None:
    """Quantize with limit bytes on top of what the libraries take; print what came of it."""
    AUTO.from_config(tiny_families.config_of("llama"))  # the last of the libraries
    if float(limit) < math.inf:
        total = proc_bytes(STATUS, "VmData") + int(limit)
        resource.setrlimit(resource.RLIMIT_DATA, (total, total))
    start, facts = time.perf_counter(), {}
    with peak() as found:
        try:
            facts["perplexities"] = quantize(Path(folder), method, offload == "true")
        except (MemoryError, RuntimeError, OSError, ValueError) as error:
            cause = error.__cause__ or error
            facts["error"] = str(error)
            facts["shortage"] = is_shortage(error) or is_shortage(cause)
    facts |= {"peak": found[0], "seconds": time.perf_counter() - start}
    print(json.dumps(facts))


def streams(limit: str, folder: str) -> None:
    """Print the peak in MiB of RTN on a tiny LLaMA and 2048 samples of 256 tokens."""
    config = tiny_families.config_of("llama")
    adapter = LanguageAdapter(AUTO.from_config(config), {"input_ids": torch.ones(2, 4).long()}, CPU)
    ids = torch.randint(VOCABULARY, (2048, 256), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": part} for part in ids.split(32)]
    with peak() as found:
        SHORT(
            adapter, batches, quantizer=RTN, ranges=MinMax(), grid=Grid(4, False, PerChannel()),
            generator=torch.Generator().manual_seed(0),
            cache=ActivationCache(limit_gib=float(limit), spill=DiskTensors(folder)),
        )  # fmt: skip
    print(f"{found[0] / MIB:.0f}")


def measure(folder: Path, method: str, offload: bool, limit: float) -> dict[str, Any]:
    """Return what came of `limited` in a process of its own; the peak is in bytes."""
    facts = map(str, (folder, method, str(offload).lower(), limit))
    command = [sys.executable, "-m", "benchmarks.memory", "limited", *facts]
    # RLIMIT_DATA counts the holes in glibc's heap, which hold no memory: large tensors stay out.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MIB)}
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        size = make_model(Path(folder))
        print(f"a model of {size / MIB:.0f} MiB\n")
        print("| quant | offload | limit (MiB) | peak (MiB) | seconds | perplexities |")
        print("|---|---|---|---|---|---|")
        half = size // 2
        cases = [("rtn", False, math.inf), ("rtn", False, half), ("rtn", True, half)]
        for method, offload, limit in [*cases, ("flexround", True, half)]:
            found = measure(Path(folder), method, offload, limit)
            values = found.get("perplexities")
            end = "out of memory" if found.get("shortage") else found.get("error")
            if values:
                end = f"{values[0]:.1f}, {values[1]:.1f}"
            shown = "none" if limit == math.inf else f"{limit / MIB:.0f}"
            row = method, str(offload).lower(), shown, f"{found['peak'] / MIB:.0f}"
            print(f"| {' | '.join(row)} | {found['seconds']:.0f} | {end} |")


if __name__ == "__main__":
    {"limited": limited, "streams": streams}[sys.argv[1]](*sys.argv[2:]) if sys.argv[1:] else main()
