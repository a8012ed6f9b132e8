"""Cost of a large folder of records: seconds and peak memory of the views, at first and again.

`python -m benchmarks.board [N]` makes N synthetic records (50,000) of a real one's settings in a
temporary folder and runs the commands on them. The first has every file to read and leaves an index
beside them; the next find it. `--blocks 50` gives each record the units and the learning curves of
a network of that many, 20 kB a record.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice, product
from pathlib import Path

from results.records.record import Record

ROOT = Path(__file__).resolve().parent.parent
TASKS = (("digits", "top1"), ("imagenet", "top1"), ("wikitext2", "perplexity"), ("cola", "mcc"))
MODELS = [f"network_{number}" for number in range(9)]
METHODS = ("rtn", "adaround", "adaquant", "flexround", "lrq", "signround", "gptq", "cdquant")
BITS, FAILS, CURVE = range(8, 1, -1), 0.01, 11
CELLS = len(MODELS) * len(TASKS) * len(METHODS) * len(BITS)
SETTLED = 3.0  # seconds; a file that has just been written is not believed to stay
VIEWS: Sequence[Sequence[str]] = (
    [], [], ["--where", "recon.iters=20000"], ["--by", "num_samples"],
    ["html", "--out", "{out}/page.html"], ["compare", "flexround", "adaround"],
    ["ablation", "quant"], ["plot", "bits", "--out", "{out}"], ["table02"],
)  # fmt: skip


def records(number: int, blocks: int = 2) -> Iterator[Record]:
    """Yield records of as many seeds a cell as there must be; one in a hundred has failed."""
    draws = random.Random(0)
    seeds = range(-(-number // CELLS))
    cells = product(MODELS, TASKS, METHODS, BITS, seeds)
    for index, (model, task, quant, bits, seed) in enumerate(islice(cells, number)):
        run_id = f"{draws.getrandbits(64):016x}"
        yield _record(run_id, index, (model, *task, quant, bits, seed), blocks, draws)


def _record(
    run_id: str, index: int, names: tuple[str, str, str, str, int, int], blocks: int,
    draws: random.Random,
) -> Record:  # fmt: skip
    model, name, metric, quant, bits, seed = names
    fails = draws.random() < FAILS
    value = 90 - 60 / bits**2 + draws.random()
    settings = {
        "activation": None, "bits": bits, "checkpoint": None, "seed": seed, "symmetric": True,
        "num_samples": 1024,
        "granularity": {"_target_": "PerTensor"},
        "model": {
            "_target_": "VisionModel", "name": model, "library": "timm", "weights": "DEFAULT",
            "absorb_biases": False, "equalize": False, "first_last_bits": 8,
        },
        "quant": {"_target_": quant, "_partial_": True, "beta_start": 20, "reg_weight": 0.01},
        "ranges": {"_target_": "LpSearch", "candidates": 80, "p": 2.4, "step": 0.01},
        "recon": {
            "_target_": "Reconstruction", "iters": 20000, "lr": 4e-4, "batch_size": 32,
            "schedule": "cosine", "inputs": "quant", "unit": "block", "keep_best": False,
            "precision": "float32",
        },
        "task": {"_target_": "Task", "eval_batch_size": 180, "size": 32, "version": 1},
    }  # fmt: skip
    return Record(
        run_id=run_id, status="failed" if fails else "ok", model=model, task=name, task_version=1,
        quant=quant, bits=bits, seed=seed, metric=metric, higher_is_better=metric != "perplexity",
        value=None if fails else value, fp_value=90.0, settings=settings,
        metrics={} if fails else {metric: value}, fp_metrics={metric: 90.0},
        blocks=[_block(index, bits, draws) for index in range(blocks)], quantized_share=1.0,
        seconds=draws.uniform(10, 1000), peak_memory_gib=1.25, device="cpu",
        versions={"torch": "2.14.1", "torchvision": "0.29.1", "timm": "1.0.31"},
        commit="0123456789ab",
        started=f"2026-01-{1 + index % 28:02d}T00:{index // 60 % 60:02d}:{index % 60:02d}+00:00",
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
        "curve": [[2000 * point, draws.random()] for point in range(CURVE)],
        "objectives": {}, "unreached": [],
    }  # fmt: skip


def measured(view: Sequence[str], folder: str) -> tuple[float, float, float, str]:
    """Return a view's seconds, those of the processor, peak memory in MB, and last complaint."""
    command = [sys.executable, "-m", "results", *view, "--results-dir", folder]
    # The usage is that of all of a process's children: a process of its own has only this one.
    child = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], capture_output=True,"
        " text=True); used = resource.getrusage(resource.RUSAGE_CHILDREN);"
        " print(used.ru_utime + used.ru_stime, used.ru_maxrss);"
        " print(done.stderr.strip().rpartition('\\n')[2][:100])"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", child, *command],
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - start
    numbers, complaint = done.stdout.splitlines()
    processor, peak = numbers.split()
    return seconds, float(processor), int(peak) * 1024 / 1e6, complaint


def main() -> None:
    """Print what the commands take."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("number", type=int, nargs="?", default=50_000)
    parser.add_argument("--blocks", type=int, default=2, help="units of a record")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as out:
        size = 0
        for record in records(args.number, args.blocks):
            text = json.dumps(record.to_json(), indent=1, sort_keys=True)
            size += len(text)
            Path(folder, f"{record.run_id}.json").write_text(text)
        print(f"{args.number} records of {size / args.number:.0f} bytes\n")
        time.sleep(SETTLED)
        print("| python -m results | s | s of the processor | MB |\n|---|---|---|---|")
        for view in VIEWS:
            seconds, processor, peak, complaint = measured(
                [p.format(out=out) for p in view], folder
            )
            told = f" ({complaint})" if complaint else ""
            print(
                f"| {' '.join(view)}{told} | {seconds:.1f} | {processor:.1f} | {peak:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
