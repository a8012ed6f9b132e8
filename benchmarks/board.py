"""Cost of a large folder of records: seconds of the table and the page, bytes of the page.

`python -m benchmarks.board [N]` makes N synthetic records (10,000) of a real one's size in a
temporary folder and runs the two commands on them.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path

from results.records.record import Record

ROOT = Path(__file__).resolve().parent.parent
TASKS = (("digits", "top1"), ("imagenet", "top1"), ("wikitext2", "perplexity"), ("cola", "mcc"))
MODELS = [f"network_{number}" for number in range(9)]
METHODS = ("rtn", "adaround", "adaquant", "flexround", "lrq", "signround", "gptq", "cdquant")
BITS, SEEDS, BLOCKS, FAILS = range(8, 1, -1), range(5), 16, 0.01


def records(number: int) -> Iterator[Record]:
    """Yield at most 10,080 records, five seeds a cell; one in a hundred has failed."""
    draws = random.Random(0)
    cells = product(MODELS, TASKS, METHODS, BITS, SEEDS)
    for index, (model, task, quant, bits, seed) in enumerate(islice(cells, number)):
        yield _record(f"{index:016x}", model, task, quant, bits, seed, draws)


def _record(
    run_id: str, model: str, task: tuple[str, str], quant: str, bits: int, seed: int,
    draws: random.Random,
) -> Record:  # fmt: skip
    name, metric = task
    fails = draws.random() < FAILS
    value = 90 - 60 / bits**2 + draws.random()
    settings = {
        "model": {"_target_": "VisionModel", "name": model},
        "task": {"_target_": "Task", "eval_batch_size": 180, "size": 32},
        "quant": {"_target_": quant, "_partial_": True},
        "recon": {
            "_target_": "Reconstruction", "iters": 20000, "lr": 4e-4,
            "batch_size": 32, "schedule": "cosine", "inputs": "quant", "unit": "block",
        },
        "granularity": {"_target_": "PerTensor"},
        "ranges": {"_target_": "LpSearch", "candidates": 80, "p": 2.4},
        "bits": bits, "seed": seed, "symmetric": True, "num_samples": 1024, "checkpoint": None,
    }  # fmt: skip
    return Record(
        run_id=run_id, status="failed" if fails else "ok", model=model, task=name, task_version=1,
        quant=quant, bits=bits, seed=seed, metric=metric, higher_is_better=metric != "perplexity",
        value=None if fails else value, fp_value=90.0, settings=settings,
        metrics={} if fails else {metric: value}, fp_metrics={metric: 90.0},
        blocks=[_block(index, bits, draws) for index in range(BLOCKS)],
        seconds=draws.uniform(10, 1000), peak_memory_gib=1.25, device="cpu",
        versions={"torch": "2.14.1", "torchvision": "0.29.1", "timm": "1.0.31"},
        commit="0123456789ab", started="2026-01-01T00:00:00+00:00",
        error="the loss of layer3.1 is nan after 12 iterations; give a lower recon.lr=" if fails
        else None,
        overrides=[f"model={model}", f"task={name}", f"quant={quant}", f"bits={bits}",
                   f"seed={seed}", "recon.iters=20000"],
    )  # fmt: skip


def _block(index: int, bits: int, draws: random.Random) -> dict[str, object]:
    return {
        "name": f"layer{index}", "layers": {f"layer{index}.conv{n}": bits for n in (1, 2)},
        "error_before": draws.random() * 100, "error_after": draws.random(),
        "seconds": draws.random() * 10, "peak_memory_gib": draws.random(),
        "cost": {"flops": draws.random() * 1e12, "parameters": 1000, "state_bytes": 16000},
    }  # fmt: skip


def main(number: int) -> None:
    """Print what the commands take."""
    with tempfile.TemporaryDirectory() as folder:
        size = 0
        for record in records(number):
            text = json.dumps(record.to_json(), indent=1, sort_keys=True)
            size += len(text)
            Path(folder, f"{record.run_id}.json").write_text(text)
        print(f"{number} records of {size / number:.0f} bytes")
        page = Path(folder, "page.html")
        for view in ([], ["html", "--out", str(page)]):
            command = ["-m", "results", *view, "--results-dir", folder]
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, cwd=ROOT, capture_output=True)
            print(f"python -m results {' '.join(view[:1])}: {time.perf_counter() - start:.2f} s")
        print(f"the page: {page.stat().st_size} bytes")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
