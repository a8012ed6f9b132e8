"""The GPU script's parts, as far as a CPU can show: what is counted, timed and compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from omegaconf import OmegaConf

from benchmarks.gpu import long, methods, timing
from benchmarks.gpu.cases import TinyCase, every_case, quantized
from benchmarks.gpu.codes import reports_differ, shares
from benchmarks.gpu.context import Context
from benchmarks.gpu.iteration import Bench
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.shapes import Shape, llama2_7b, llama31_8b, small_cases
from benchmarks.gpu.stages import Stages
from benchmarks.gpu.store import ROOT, SCHEMA, STATUSES
from benchmarks.gpu.sync import READING, Places, cases
from benchmarks.reconstruction import METHODS
from experiment.config import composed
from flexround.quantizers.flexround import FlexRound
from flexround.reconstruction import learning
from flexround.reconstruction.block_walk import Walk
from flexround.reconstruction.job import UnitJob

CPU = torch.device("cpu")


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(CPU, True, tmp_path)


@pytest.mark.parametrize("name", methods.names())
def test_methods_are_those_that_hydra_composes(name: str):
    cfg = composed([f"quant={name}", "model=tiny_llama"])

    def plain(node):
        return {k: plain(v) if isinstance(v, dict) else methods._value(v) for k, v in node.items()}

    node = OmegaConf.to_container(cfg.quant, resolve=True)
    assert plain(methods.described(name)) == plain(node)


def test_every_method_and_solver_is_tried():
    for tiny in (True, False):
        assert {case.quant for case in every_case(tiny)} == set(methods.names())
    learned = {name for name in methods.names() if not methods.is_solver(name)} - {"rtn"}
    assert {case.quant for case in cases(tiny=True)} == learned
    assert methods.is_solver("gptq")
    assert not methods.is_solver("flexround")


def test_shares_of_equal_codes():
    own = quantized(TinyCase("llama", "rtn"), CPU, 0).integers
    other = {name: held for name, held in own.items()}
    assert shares(own, other) == {"equal codes": 1.0, "equal scales": 1.0}
    name, total = next(iter(own)), sum(held.codes.numel() for held in own.values())
    codes = own[name].codes.clone()
    codes[0, :3] += 1
    other[name] = type(own[name])(codes, own[name].scale, own[name].zero_point, own[name].grid)
    assert shares(own, other)["equal codes"] == 1 - 3 / total
    with pytest.raises(ValueError, match="in one of the two alone"):
        shares(own, {name: own[name]})


def test_reports_that_differ_are_told():
    blocks = quantized(TinyCase("llama", "flexround"), CPU, 1).reports.blocks
    assert reports_differ(blocks, blocks) == []
    cost = replace(blocks[0].cost, flops=blocks[0].cost.flops + 1)
    changed = [replace(blocks[0], cost=cost, layers={"x": 4}), *blocks[1:]]
    assert reports_differ(blocks, changed) == ["layers", "cost (flops)"]


def waits_of(planted) -> Places:
    places = Places()
    with mock.patch.object(FlexRound, "after_step", planted), places.counted(cuda=False):
        quantized(TinyCase("llama", "flexround"), CPU, 4)
    return places


def test_a_value_that_is_read_is_a_wait():
    """Two blocks of seven layers each: an item a layer and iteration, at the line that reads it."""
    assert not set(waits_of(lambda self: None).counts) - {READING}
    # The planted line is none of flexround/: the innermost of ours that called it is told.
    places = waits_of(lambda self: self.log_s1.sum().item())
    (place,) = set(places.counts) - {READING}
    assert places.iterations == 8
    assert places.counts[place] == 7 * places.iterations
    assert "learning.py" in place
    assert "quantizer.after_step()" in place
    # First and last iteration are read in both units, the loss and the error.
    assert 4 <= places.counts[READING] <= 12


def test_a_mask_is_a_wait():
    mask = torch.tensor([True, False])
    places = waits_of(lambda self: torch.zeros(2)[mask])
    assert sum(n for p, n in places.counts.items() if p != READING) == 7 * places.iterations


def test_cudas_own_warnings_are_counted_by_our_lines():
    def planted(self) -> None:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    places, modes = Places(), []
    with (
        mock.patch.object(FlexRound, "after_step", planted),
        mock.patch("torch.cuda.get_sync_debug_mode", return_value=0),
        mock.patch("torch.cuda.set_sync_debug_mode", modes.append),
        places.counted(cuda=True),
    ):
        quantized(TinyCase("llama", "flexround"), CPU, 4)
    (place,) = places.counts
    assert places.counts[place] == 7 * places.iterations == 56
    assert "quantizer.after_step()" in place
    assert modes == ["warn", 0] * 2  # a unit each


def test_flexround_waits_for_nothing_in_an_iteration():
    places = waits_of(FlexRound.after_step)
    assert not set(places.counts) - {READING}


def test_shapes_have_the_published_numbers_of_weights():
    assert llama2_7b().weights == 4096 * (4 * 4096 + 3 * 11008) == 202_375_168
    assert llama31_8b(tiny=False).weights == 218_103_808
    tiny = llama31_8b(tiny=True)
    adapter, _ = tiny.make(CPU)
    assert tiny.weights == sum(layer.module.weight.numel() for layer in adapter.layers().values())


def test_a_card_that_is_too_small_is_told_what_fits():
    shape = llama31_8b(tiny=False)
    assert shape.refusal(80.0) is None
    assert shape.refusal(shape.needs_gib()) is None
    line = shape.refusal(shape.needs_gib() - 0.1)
    assert line is not None
    assert "needs about" in line
    assert "a batch of 4 would fit" in line
    assert "a batch of 2 would fit" in (shape.refusal(shape.needs_gib(2) + 0.01) or "")
    assert "take a larger card" in (shape.refusal(1.0) or "")


def test_operations_are_those_of_the_blocks_products(context: Context):
    """Two for a multiplication with its addition, and the backward pass twice the forward one."""
    shape = Shape("a block", 64, 224, 4, 2, 4, 16, 2)
    tokens = shape.batch_size * shape.tokens
    products = 6 * tokens * shape.weights
    attention = 3 * 2 * 2 * shape.batch_size * shape.tokens**2 * shape.hidden
    assert Bench(shape.case(), context).flops == products + attention
    (mobile,) = small_cases(tiny=True)
    inside, between = 96, 576  # MobileNetV2's features.12: 1 x 1, depthwise 3 x 3, 1 x 1
    weights = inside * between + 9 * between + between * inside
    assert Bench(mobile, context).flops == 6 * 32 * 7 * 7 * weights


def test_an_iteration_is_timed_and_leaves_the_block_as_it_was(context: Context):
    shape = llama31_8b(tiny=True)
    bench = Bench(shape.case(), context)
    before = [p.clone() for p in bench._made[1].module.parameters()]
    floor = bench.floor("float32")
    found = bench.iteration(METHODS["flexround"], "float32", False)
    assert len(floor) == 2
    assert len(found) == 2
    assert min(floor + found) > 0
    after = list(bench._made[1].module.parameters())
    assert all(map(torch.equal, before, after))
    assert all(p.grad is None for p in after)


class FakeEvent:
    """A CUDA event of a clock that goes on by a millisecond a record."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        """Note the time."""
        FakeEvent.now += 1
        self.at = FakeEvent.now

    def elapsed_time(self, other: FakeEvent) -> float:
        """Return the milliseconds to other."""
        return other.at - self.at


def test_times_are_between_events_on_a_card():
    with (
        mock.patch("torch.cuda.Event", FakeEvent),
        mock.patch("torch.cuda.current_stream", return_value=None),
        mock.patch("torch.cuda.synchronize") as waited,
    ):
        times = timing.rounds_of(lambda: None, torch.device("cuda"), 4, 10)
    assert times == [0.1] * 4
    assert waited.call_count == 1  # once in the end, not in between
    assert timing.median_and_spread([1.0, 2.0, 3.0, 100.0, 2.0])[0] == 2.0


class Card:
    """The memory of a card: the peak since the last reset."""

    def __init__(self) -> None:
        self.gib = 0.0

    def peak(self, device: object) -> float:
        """Return the bytes at the peak."""
        return self.gib * 2**30

    def reset(self, device: object) -> None:
        """Forget the peak; half a GiB stays."""
        self.gib = 0.5


def test_stages_have_their_own_peaks_and_the_whole_the_largest():
    card = Card()
    peaks = {"replay_all": 3, "attach": 1, "learn": 5, "freeze": 1, "error": 2}
    stages = Stages(torch.device("cuda"))
    with (
        mock.patch("torch.cuda.synchronize"),
        mock.patch("torch.cuda.max_memory_allocated", card.peak),
        mock.patch("torch.cuda.reset_peak_memory_stats", card.reset),
    ):
        places = {"replay_all": Walk, "error": UnitJob}
        with pytest.MonkeyPatch.context() as patch:
            for name, peak in peaks.items():
                patch.setattr(
                    places.get(name, learning),
                    name,
                    lambda *_, peak=peak: setattr(card, "gib", peak),
                )
            with stages.watched():
                Walk.replay_all(None, None, None, None)
                learning.attach()
                learning.learn()
                UnitJob.error(None)
    expected = {"targets": 3, "ranges": 1, "iterations": 5, "evaluation": 2, "whole": 5}
    assert {name: stages.peaks[name] for name in expected} == expected
    assert stages.seconds.keys() >= expected.keys()


@pytest.mark.parametrize(
    ("status", "units", "expected"),
    [
        (143, 0, {"skipped": "cut off with 0 finished units; a later call goes on"}),
        (-9, 3, {"skipped": "cut off with 3 finished units; a later call goes on"}),
        (1, 0, {"error": "error: imagenet_dir=x: there is no such folder"}),
    ],
)
def test_a_long_run_that_is_not_over_says_how_far_it_is(tmp_path: Path, status, units, expected):
    results = tmp_path / "flexround-4"
    for number in range(units):
        path = results / "unfinished" / "run" / f"{number:04d}-0.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    results.with_suffix(".log").write_text(
        "a line\nerror: imagenet_dir=x: there is no such folder\n"
    )
    found = long._row("flexround", 4, mock.Mock(returncode=status), tmp_path)
    assert found == {"quant": "flexround", "bits": 4} | expected


def test_a_long_runs_files_travel_to_another_machine(tmp_path: Path):
    own, other = tmp_path / "own" / "long", tmp_path / "other" / "long"
    (own / "flexround-4" / "unfinished").mkdir(parents=True)
    (own / "flexround-4" / "unfinished" / "a").write_text("b")
    (own / "cache").mkdir()
    long._pack(own)
    other.parent.mkdir()
    (own.parent / "long.tar.gz").rename(other.parent / "long.tar.gz")
    long._unpack(other)
    assert (other / "flexround-4" / "unfinished" / "a").read_text() == "b"
    assert not (other / "cache").exists()  # it is made again
    (other / "flexround-4" / "unfinished" / "a").write_text("newer")
    long._unpack(other)
    assert (other / "flexround-4" / "unfinished" / "a").read_text() == "newer"


def test_long_runs_without_images_are_left_out(context: Context):
    (row,) = long.rows(replace(context, tiny=False))
    assert "--images" in str(row["skipped"])


def check_file(folder: Path, names: list[str]) -> dict:
    """Check the schema of the file of a tiny run; return its parts."""
    held = json.loads((folder / "cpu-tiny.json").read_text())
    assert (held["schema"], held["card"], held["tiny"]) == (SCHEMA, "cpu", True)
    assert list(held["parts"]) == names
    for part in held["parts"].values():
        assert part["status"] in STATUSES
        assert part["code"]
        assert part["torch"] == torch.__version__
        assert part["seconds"] >= 0
        for row in part["rows"]:
            assert all(isinstance(v, str | int | float | None) for v in row.values())
            assert "error" not in row, row
    return held["parts"]


def script(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny"]
    done = subprocess.run(
        [*command, "--out", str(folder), *words], capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_cheap_parts_of_the_tiny_script(tmp_path: Path):
    names = ["machine", "memory"]
    script(tmp_path, "--parts", *names)
    parts = check_file(tmp_path, names)
    assert [part["status"] for part in parts.values()] == ["done"] * 2
    facts = {row["fact"]: row["value"] for row in parts["machine"]["rows"]}
    assert facts["torch"] == torch.__version__
    for row in parts["memory"]["rows"]:
        stages = sum(row[f"{s}, s"] for s in ("targets", "ranges", "iterations", "evaluation"))
        assert 0 < stages <= row["whole, s"]


@pytest.mark.slow
def test_the_whole_tiny_script(tmp_path: Path):
    script(tmp_path)
    parts = check_file(tmp_path, list(PARTS))
    for row in parts["codes"]["rows"]:  # the same processor twice: nothing may differ
        assert row["equal codes"] == row["equal scales"] == 1
        assert row["output"] == 0
    assert script(tmp_path).count("from an earlier call") >= len(PARTS) - 1
    assert script(tmp_path, "--render").count("\n|---") >= len(PARTS) - 1
