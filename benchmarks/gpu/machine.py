"""Machine: the card, its driver, and what it can do."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.gpu.context import Context, Row, Value
from benchmarks.gpu.timing import ceilings, median_and_spread, rounds_of

AMPERE = (8, 0)  # the first with bfloat16 and TF32
PACKAGES = ("transformers", "torchvision", "timm", "triton", "hydra-core", "auto-round")


def has_bfloat16(device: torch.device) -> bool:
    """Return whether device has products of bfloat16; a CPU works them out in some way."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= AMPERE


def probe(device: torch.device) -> Iterator[Row]:
    """Yield the name of the card and its memory, [GiB], or refuse.

    Raises:
        ValueError: when there is none.
    """
    if device.type == "cpu":
        yield {"card": "cpu", "gib": None}
        return
    try:
        torch.empty(1, device=device).fill_(1).item()
        total = torch.cuda.mem_get_info(device)[1] / 2**30
        yield {"card": torch.cuda.get_device_name(device), "gib": total}
    except (RuntimeError, AssertionError) as error:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        where = "" if seen is None else f" (CUDA_VISIBLE_DEVICES={seen})"
        first = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(
            f"--device={device}{where}: {first}; run it where an NVIDIA GPU and a torch built for "
            "CUDA are, or try the script with --device cpu --tiny"
        ) from error


def rows(context: Context) -> Iterator[Row]:
    """Yield (fact, value) rows."""
    for fact, value in _facts(context):
        yield {"fact": fact, "value": value}
    bfloat16 = has_bfloat16(context.device)
    for name, speed in ceilings(context.device, context.tiny, bfloat16).items():
        yield {"fact": f"matrix product in {name}, TFLOP/s", "value": speed / 1e12}
    if context.cuda:
        yield {"fact": "copy on the card, GB/s read and written", "value": _copy(context)}


def _facts(context: Context) -> Iterator[tuple[str, Value]]:
    device = context.device
    yield "torch", torch.__version__
    yield "python", platform.python_version()
    yield "cores", os.cpu_count()
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, None
    yield "compiler for compile=true", _compiler(context)
    yield "bfloat16", has_bfloat16(device)
    if context.cuda:
        found = torch.cuda.get_device_properties(device)
        yield "card", found.name
        yield "capability", f"{found.major}.{found.minor}"
        yield "memory, GiB", found.total_memory / 2**30
        yield "free, GiB", context.free_gib()
        yield "multiprocessors", found.multi_processor_count
        yield "CUDA of torch", torch.version.cuda
        yield "cuDNN", torch.backends.cudnn.version()
        yield "driver", _driver()
        cudnn: Any = torch.backends.cudnn
        yield "float32 in products by default", torch.backends.cuda.matmul.fp32_precision
        yield "float32 in convolutions by default", cudnn.conv.fp32_precision


def _compiler(context: Context) -> bool:
    from flexround.kernels.chunking import check_compiler

    try:
        check_compiler(context.device)
    except ValueError:
        return False
    return not context.cuda or importlib.util.find_spec("triton") is not None


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return told.stdout.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def _copy(context: Context) -> float:
    """Return the bandwidth of a copy on the card, GB/s."""
    source = torch.empty(2**24 if context.tiny else 2**30, dtype=torch.uint8, device=context.device)
    target = torch.empty_like(source)
    times = rounds_of(lambda: target.copy_(source), context.device, 5, 5)
    return 2 * source.numel() / (median_and_spread(times)[0] / 1e3) / 1e9
