"""Smoke sweeps are of every preset, or of those asked for."""

from __future__ import annotations

from benchmarks.smoke import EXPERIMENTS, main, presets
from tests.benchmarks.refusals import check_refused_in_one_line


def test_all_presets_by_default_and_a_folders_by_its_name():
    everything = presets([])
    assert len(everything) == len(set(everything)) == len(list(EXPERIMENTS.rglob("*.yaml")))
    assert presets(["gptq/opt"]) == ["gptq/opt"]
    of_gptq = {path.stem for path in (EXPERIMENTS / "gptq").iterdir()}
    assert presets(["ablation_lr", "gptq"])[0] == "ablation_lr"
    assert {name.removeprefix("gptq/") for name in presets(["gptq"])} == of_gptq


def test_a_preset_that_is_not_there_is_told(capsys):
    check_refused_in_one_line(
        main, ["gptq/op"], "gptq/op: no such preset; give one of conf", capsys
    )
