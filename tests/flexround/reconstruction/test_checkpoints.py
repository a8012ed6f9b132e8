"""A run that was cut off goes on at the next unit, and ends as the undisturbed one, bit for bit."""

from __future__ import annotations

import errno
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flexround.activations.schemes import StaticPerTensor
from flexround.grid import Grid, PerChannel
from flexround.ranges import LpSearch
from flexround.reconstruction.checkpoints import FileCheckpoints
from flexround.reconstruction.layerwise import Solve
from tests.conftest import some_slow
from tests.flexround.quantizers.methods import METHODS
from tests.flexround.reconstruction.test_reconstruction import SETTING, adapter, calibration
from tests.flexround.solvers.test_drift import GPTAQ_
from tests.flexround.solvers.test_solvers import CYCLIC
from tests.flexround.test_cost import Keep

STATIC = StaticPerTensor(4, True, 4, 8, None, 8, "quant")
QDROP = replace(SETTING, iters=6, inputs="mixed", act_steps="together")
BRECQ = replace(SETTING, iters=6, act_steps="after", act_iters=5)
CASES = {
    "flexround": (replace(SETTING, iters=6), METHODS["flexround"], None),
    "layer": (replace(SETTING, iters=6, unit="layer"), METHODS["adaround"], None),
    "keep_best": (replace(SETTING, iters=6, keep_best=True), METHODS["signround"], None),
    "qdrop": (QDROP, METHODS["flexround"], replace(STATIC, ranges_from="fp")),
    "qdrop_quant": (QDROP, METHODS["flexround"], STATIC),
    "brecq": (replace(BRECQ, act_inputs="fp"), METHODS["adaquant"], STATIC),
    "brecq_quant": (BRECQ, METHODS["adaquant"], replace(STATIC, ranges_from="fp")),
    "held_out": (replace(BRECQ, held_out=8, patience=1), METHODS["flexround"], STATIC),
    # What is learned from is no multiple of the batch: no pass may have other batches than another.
    "held_out_odd": (replace(SETTING, iters=6, held_out=11), METHODS["flexround"], None),
    "rtn": (replace(BRECQ, iters=0, act_iters=0), METHODS["rtn"], STATIC),
    "cdquant": (Solve(8, sequential=True), CYCLIC, STATIC),
    "gptaq": (Solve(8, sequential=True), GPTAQ_, STATIC),
}
KEY = {"torch": "this"}


class Killed(Exception):
    """Stands for the end of the process."""


class Dying(FileCheckpoints):
    """Ends the process once so many units are saved."""

    def __init__(self, folder, key, lives):
        super().__init__(folder, key)
        self.lives = lives

    def save(self, unit, snapshot):
        """Keep the unit, and perhaps die."""
        super().save(unit, snapshot)
        self.lives -= 1
        if not self.lives:
            raise Killed


def quantize(case, checkpoints=None):
    """Return the model's outputs, its weights, the integers and the reports without their times."""
    setting, method, activation = CASES[case]
    target, keep = adapter(), Keep()
    codes = setting(
        target, calibration(), quantizer=method, grid=Grid(3, False, PerChannel()),
        ranges=LpSearch(2.4, 20, 0.01), generator=torch.Generator().manual_seed(0),
        activation=activation, callbacks=[keep], checkpoints=checkpoints,
    )  # fmt: skip
    outputs = target.model(calibration()[0])
    facts = [replace(report, seconds=0.0, peak_memory_gib=0.0) for report in keep.reports]
    return outputs, dict(target.model.state_dict()), codes, facts


def same(one, other):
    assert torch.equal(one[0], other[0])
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])
    for name, integers in one[2].items():
        for part in ("codes", "scale", "zero_point"):
            assert torch.equal(getattr(integers, part), getattr(other[2][name], part))
    assert one[3] == other[3]


# What each of these has stands in another case as well.
LIKE_OTHERS = ("qdrop_quant", "brecq_quant", "held_out", "gptaq")


@pytest.mark.parametrize("case", some_slow(CASES, LIKE_OTHERS))
def test_killed_after_any_unit_the_result_is_the_undisturbed_one(case, tmp_path):
    expected = quantize(case)
    units = len(expected[3])
    assert units >= 4
    for lives in range(1, units + 1):
        folder = tmp_path / str(lives)
        with pytest.raises(Killed):
            quantize(case, Dying(folder, KEY, lives))
        same(quantize(case, FileCheckpoints(folder, KEY)), expected)


def test_killed_again_and_again(tmp_path):
    expected = quantize("qdrop")
    deaths = 0
    while True:
        try:
            found = quantize("qdrop", Dying(tmp_path / "it", KEY, 1))
        except Killed:
            deaths += 1
            continue
        break
    same(found, expected)
    assert deaths == len(expected[3])


def kept(folder: Path, lives=3):
    with pytest.raises(Killed):
        quantize("flexround", Dying(folder, KEY, lives))
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.parametrize("harm", ["truncated", "flipped", "gone"])
def test_a_damaged_file_is_set_aside_and_what_follows_computed_again(harm, tmp_path, caplog):
    expected = quantize("flexround")
    files = kept(tmp_path)
    data = files[1].read_bytes()
    if harm == "truncated":
        files[1].write_bytes(data[: len(data) // 2])
    elif harm == "flipped":
        files[1].write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        files[1].unlink()
    same(quantize("flexround", FileCheckpoints(tmp_path, KEY)), expected)
    assert len(list(tmp_path.glob("*.damaged"))) == 1
    if harm != "gone":
        assert f"{files[1]} is damaged (its digest is another one)" in caplog.text


def test_another_version_or_attempt_starts_afresh(tmp_path, caplog):
    kept(tmp_path)
    with caplog.at_level("INFO"):
        assert FileCheckpoints(tmp_path, {"torch": "another"}).find("0") is None
    assert "of another version or attempt" in caplog.text
    assert not tmp_path.exists()


def test_a_full_disk_costs_the_checkpoints_and_not_the_run(tmp_path, monkeypatch, caplog):
    expected = quantize("flexround")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    same(quantize("flexround", FileCheckpoints(tmp_path / "it", KEY)), expected)
    assert caplog.text.count("no checkpoints from here on: No space left on device") == 1
    assert list((tmp_path / "it").iterdir()) == [], "nothing is left half-written"


def test_cleared_checkpoints_are_gone(tmp_path):
    folder = tmp_path / "it"
    kept(folder)
    checkpoints = FileCheckpoints(folder, KEY)
    checkpoints.clear()
    assert not folder.exists()
    assert checkpoints.find("0") is None


def test_a_file_that_can_not_be_read_is_left_and_ends_what_is_kept(tmp_path, monkeypatch, caplog):
    expected = quantize("flexround")
    files = kept(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    real = Path.read_bytes

    def read(path):
        if path == files[1]:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    monkeypatch.setattr("flexround.utils.file_errors.WAITS", (0.0,))
    same(quantize("flexround", FileCheckpoints(tmp_path, KEY)), expected)
    assert caplog.text.count("no checkpoints from here on: Input/output error") == 1
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    same(quantize("flexround", FileCheckpoints(tmp_path, KEY)), expected)


def test_checkpoints_that_are_deleted_meanwhile_cost_time_alone(tmp_path):
    expected = quantize("flexround")
    kept(tmp_path / "it")
    checkpoints = FileCheckpoints(tmp_path / "it", KEY)
    shutil.rmtree(tmp_path / "it")
    same(quantize("flexround", checkpoints), expected)
