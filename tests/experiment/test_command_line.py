"""Command lines as users type them: flags anywhere, and values with characters of Hydra's own."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
import torch

import artifact
import finetune
from experiment.__main__ import main as experiment
from experiment.artifacts.model_card import _command
from experiment.command_line import command_line, separated
from flexround.models.vision import VisionModel
from results.records.store import Store
from tasks.vision import checkpoints
from tests.conftest import TINY

QUICK = (*TINY, "quant=rtn", "num_samples=32", "seed=0")
# Folders that people have: of Lightning's checkpoints, of a desktop, of a URL.
ODD = ("epoch=3-step=10", "a,b (c)", "sp ace%@#", "it's [new] {1}: x")


@pytest.mark.parametrize(
    ("words", "flags", "overrides"),
    [
        ("model=a -m bits=4,3", "-m", "model=a bits=4,3"),
        ("-m model=a bits=4,3", "-m", "model=a bits=4,3"),
        ("model=a bits=4,3 --multirun", "--multirun", "model=a bits=4,3"),
        ("bits=3 --cfg job seed=1 -p task ~x", "--cfg job -p task", "bits=3 seed=1 ~x"),
        ("a=1 --config-dir=x=y b=2", "--config-dir=x=y", "a=1 b=2"),
        ("a=1 a=1 -m a=1", "-m", "a=1 a=1 a=1"),
        ("", "", ""),
    ],
)
def test_flags_stand_anywhere(words, flags, overrides):
    assert separated(words.split()) == (flags.split(), overrides.split())


@pytest.mark.parametrize("words", ["--multi-run bits=3", "bits=3 -z", "--cfg bits=3"])
def test_a_flag_that_there_is_not_is_refused(words):
    with pytest.raises(
        ValueError, match=r"--hydra-help lists (what there is|the flags)$"
    ) as refused:
        separated(words.split())
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("place", [0, 2, 6])
def test_a_sweep_runs_wherever_its_flag_stands(cli, results_dir, place):
    args = [*QUICK, "bits=8,7"]
    outcome = cli(*args[:place], "-m", *args[place:])
    assert outcome.status == 0, outcome.err
    assert sorted(record.bits for record in Store(results_dir).load()) == [7, 8]


# What is typed in a shell, and what stands in the one line.
UNQUOTED = {
    "equals": ("checkpoint=a/epoch=3-step=10/w.pth", """'checkpoint="a/epoch=3-step=10/w.pth"'"""),
    "brackets": ("data_dir=a (c)", """'data_dir="a (c)"'"""),
    "braces": ("results_dir=a{1}", """'results_dir="a{1}"'"""),
    "half": ("checkpoint='a b", """'checkpoint="a b"'"""),
    "word": ("bits", "give KEY=VALUE"),
    "comma": ("checkpoint=a,b", """a value that has commas is quoted: 'checkpoint="a,b"'"""),
    "interval": ("bits=interval(2,4)", "interval"),
    "added": ("+bit=3", "bit: there is no such option; did you mean bits?"),
    "forced": ("++bit=3", "bit: there is no such option; did you mean bits?"),
    "gone": ("~bits", "~bits: an option can't be taken away"),
}


@pytest.mark.parametrize(("word", "way_out"), UNQUOTED.values(), ids=UNQUOTED)
def test_what_hydra_can_not_read_is_one_line_with_the_way_out(cli, word, way_out):
    outcome = cli(word)
    assert outcome.status == 1
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    assert way_out in outcome.err


@pytest.mark.parametrize("key", ["equals", "brackets", "half", "word", "added", "gone"])
def test_the_other_doors_say_the_same(cli, monkeypatch, capsys, results_dir, key):
    word, way_out = UNQUOTED[key]
    assert cli(*QUICK, "save=true").status == 0
    folder = Store(results_dir).artifact(Store(results_dir).load()[0].run_id)
    capsys.readouterr()
    assert experiment(["plan", word]) == 1
    assert artifact.main(["eval", str(folder), word]) == 1
    monkeypatch.setattr(sys, "argv", ["finetune.py", "model=tiny_bert", word])
    with pytest.raises(SystemExit) as end:
        command_line(finetune.main)
    told = [*capsys.readouterr().err.strip().splitlines(), str(end.value.code)]
    assert len(told) == 3
    for line in told:
        assert line.startswith("error: ")
        assert way_out in line


def network(folder):
    """Write a network into folder and return its path."""
    folder.mkdir(exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = VisionModel("timm", "test_efficientnet", None, 8, False, False, []).build(10)
    checkpoints.save(built, folder / "w.safetensors")
    return folder / "w.safetensors"


def quoted(path):
    """Return path as Hydra's documentation quotes a value."""
    return '"{}"'.format(str(path).replace('"', '\\"'))


@pytest.fixture
def _untrained(monkeypatch):
    # The network has learned nothing, which a run would refuse.
    monkeypatch.setattr("tasks.vision.digits.Digits.check_full_precision", lambda *_: None)


@pytest.mark.usefixtures("_untrained")
def test_odd_paths_go_through_sweep_status_and_the_command_that_finishes_it(
    cli, capsys, results_dir, tmp_path
):
    paths = [network(tmp_path / name) for name in ODD]
    late = tmp_path / "no (yet) = $HOME, #1"
    swept = "checkpoint=" + ",".join(quoted(path) for path in [*paths, late / "w.safetensors"])
    outcome = cli(*QUICK, "-m", swept)
    assert "error: 1 of 5 runs failed" in outcome.err
    # One network under other paths is one run.
    good = [record for record in Store(results_dir).load() if record.status == "ok"]
    assert len(good) == 1
    capsys.readouterr()
    assert experiment(["plan", *QUICK, swept, f"results_dir={results_dir}"]) == 0
    assert capsys.readouterr().out.startswith("5 runs: 4 done, 1 ")

    def status(name):
        capsys.readouterr()
        assert experiment(["status", str(tmp_path / name)]) == 0
        return capsys.readouterr().out.splitlines()

    lines = status("sweep")
    assert lines[0].endswith(": 5 runs, 4 done, 1 failed")
    # Both what the job was asked and the command are typed into a shell as they are printed.
    asked = shlex.join([f"checkpoint={quoted(late / 'w.safetensors')}"])
    assert any(line.startswith(f"  #4 failed  {asked}: ") for line in lines)
    network(late)
    python, door, flag, *words = shlex.split(lines[-1])
    assert [python, door, flag] == ["python", "run.py", "-m"]
    again = cli(flag, *words, f"hydra.sweep.dir={tmp_path}/again")
    assert again.status == 0, again.err
    assert status("again") == [f"{tmp_path / 'again'}: 5 runs, 5 done"]


@pytest.mark.usefixtures("_untrained")
@pytest.mark.parametrize("name", ODD)
def test_a_record_remakes_itself_from_an_odd_path(cli, results_dir, tmp_path, name):
    path = network(tmp_path / name)
    assert cli(*QUICK, f"checkpoint={quoted(path)}", "save=true").status == 0
    (record,) = Store(results_dir).load()
    folder = Store(results_dir).artifact(record.run_id)
    assert artifact.main(["eval", str(folder)]) == 0
    words = shlex.split(_command(record))
    again = cli(*words[2:])
    assert again.status == 0
    assert f"already recorded as {record.run_id}" in again.err


def test_overrides_of_an_artifact_stand_on_both_sides_of_an_option(monkeypatch):
    asked = []
    monkeypatch.setattr(artifact, "export", lambda *args: asked.append(args) or "")
    assert (
        artifact.main(["export", "PATH", "a=1", "--to", "onnx", "b=2", "--out", "OUT", "c=3"]) == 0
    )
    assert asked == [("PATH", "onnx", Path("OUT"), ["a=1", "b=2", "c=3"])]
    with pytest.raises(SystemExit):
        artifact.main(["inspect", "PATH", "a=1"])
    with pytest.raises(SystemExit):
        artifact.main(["eval", "PATH", "a=1", "-x"])


@pytest.mark.parametrize("place", ["/proc/x", "/dev/null/x", "/proc/self/mem/x"])
def test_a_folder_of_hydras_that_can_not_be_made_is_one_line(cli, place):
    outcome = cli(*TINY, "quant=rtn", f"hydra.run.dir={place}")
    assert outcome.status == 1
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"error: {place}")
    assert "hydra.run.dir=" in line
