"""Checks of every value, of the overrides, and of what the other commands are told."""

from __future__ import annotations

import json
import math

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from experiment.__main__ import main as experiment
from experiment.checks import check_values
from experiment.config import composed
from experiment.overrides import LARGEST, check_overrides, check_size
from experiment.sweeps.jobs import OUTCOME, facts_in
from experiment.values import BOUNDS, INTEGER, check_every_value, check_value
from flexround.utils.arguments import ArgumentParser, check_words
from results.__main__ import main as results
from tests.conftest import TINY


@given(st.sampled_from(sorted(BOUNDS)), st.integers(-(2**70), 2**70))
def test_a_bound_is_allowed_and_what_lies_beyond_is_not(name, value):
    low, high = BOUNDS[name]
    if low <= value <= high:
        check_value(name, value)
    else:
        with pytest.raises(ValueError, match=name):
            check_value(name, value)


@given(st.text(min_size=1, max_size=12), st.floats())
def test_only_finite_numbers_of_float32_pass(name, value):
    sound = math.isfinite(value) and abs(value) < 3.5e38
    if name in BOUNDS or name.rpartition(".")[2] == "seed" or (abs(value) > 3.4e38 and sound):
        return
    if sound:
        check_value(name, value)
    else:
        with pytest.raises(ValueError, match="finite"):
            check_value(name, value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("checkpoint", "", "nothing in it"),
        ("checkpoint", " \t", "nothing in it"),
        ("checkpoint", "a\x00b", "can't be printed"),
        ("checkpoint", "a\nb", "can't be printed"),
        ("checkpoint", "a\u2028b", "can't be printed"),
        ("checkpoint", "a\udcffb", "can't be printed"),
        ("checkpoint", "x" * 256, "too long"),
        ("checkpoint", "日" * 100, "too long"),
        ("checkpoint", "y/" * 2100, "too long"),
        ("checkpoint", "~nobody-of-that-name/x", "no such home"),
        ("results_dir", "~/x", "give the whole path"),
        ("quant.rank", INTEGER + 1, "whole number from"),
        ("task.anything.seed", -1, "from 0 to 4294967295"),
        ("quant._partial_", False, "no such option"),
        ("quant._partial_", 10, "no such option"),
        ("quant._partial_", True, None),
        ("model.leave", True, None),
        ("checkpoint", "x" * 255, None),
        ("checkpoint", "~/x", None),
        ("results_dir", "a b/é", None),
    ],
)
def test_a_text_is_one_that_can_name_a_file(name, value, words):
    if words is None:
        check_value(name, value)
        return
    with pytest.raises(ValueError, match=words) as refused:
        check_value(name, value)
    assert refused.value.args[0].startswith(name)
    assert refused.value.args[0].isprintable()


def test_a_value_that_is_taken_from_elsewhere_is_told_by_the_option_it_comes_from():
    cfg = composed(["model=tiny_llama"])
    cfg.cache_dir = " "  # task.cache_dir is ${cache_dir}
    with pytest.raises(ValueError, match=r"^cache_dir=' '"):
        check_every_value(cfg)


@pytest.mark.parametrize("device", ["meta", "cpu:0", "cuda:", "cuda:x", "mps", "CPU", "cuda:٣"])
def test_only_devices_that_runs_have_are_taken(device):
    cfg = composed([])
    cfg.device = device
    with pytest.raises(ValueError, match="give auto, cpu or cuda:N"):
        check_values(cfg)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["bits=4", "bits=3"], "bits=4 and bits=3: give bits once"),
        (["quant=rtn", "quant=gptq"], "give quant once"),
        (["bits=4", "++bits=3"], "give bits once"),
        (["++bits=3"], "give bits=3"),
        (["+bits=3"], "give bits=3"),
        (["++recon.lr=3"], "give recon.lr=3"),
        (["~quant"], "can't be taken away"),
        (["=4"], "names no option"),
        (["model=../quant/rtn"], "no member of model"),
        (["model=/etc/passwd"], "no member of model"),
        (["quant=null"], "no member of quant"),
        (["quant=[rtn]"], "no member of quant"),
        (["checkpoint=\x7fa\x1cb"], "can't be printed"),
        (["checkpoint=a\u2028b"], "can't be printed"),
        (["symmetric=2"], "give true or false"),
        (["rerun=0.5"], "give true or false"),
        (["hydra.run.dir=''"], "nothing in it"),
        (["bits=3", "experiment=null", "+hydra.launcher.sbatch.qos=high"], None),
        (["quant=rtn,gptq", "bits=range(2,5)", "recon=glob(*)"], None),
    ],
)
def test_overrides_that_hydra_would_take_are_refused(words, told):
    if told is None:
        check_overrides(words)
        return
    with pytest.raises(ValueError, match=r"\w") as refused:
        check_overrides(words)
    assert told in refused.value.args[0]


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        ("bits=2,3,4", 3),
        ("bits=2,3 seed=range(0,10)", 20),
        (f"seed=range({LARGEST})", LARGEST),
        (f"seed=range({LARGEST + 1})", LARGEST + 1),
        ("seed=range(0,1000000000)", 10**9),
        ("recon.lr=range(0,1,0.0000001)", 10**7),
        ("seed=range(1000) bits=2,3 num_samples=range(1,1001)", 2 * 10**6),
    ],
)
def test_a_sweep_too_large_is_refused_before_it_is_listed(words, runs):
    parsed = OverridesParser.create().parse_overrides(words.split())
    if runs <= LARGEST:
        check_size(parsed)
    else:
        with pytest.raises(ValueError, match="more than 100000 runs"):
            check_size(parsed)


@pytest.mark.parametrize(
    "text", ["\x00\xff{", "[1,2", "a: 1", "- 1", "", "hydra: {}\nresults_dir: x"]
)
def test_a_damaged_sweep_is_told_in_one_line(tmp_path, capsys, text):
    (tmp_path / "multirun.yaml").write_bytes(text.encode("latin-1"))
    assert experiment(["status", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {tmp_path}/multirun.yaml is damaged")


@pytest.mark.parametrize("data", [[], 1, {"a": 1}, {"run_id": "../../x"}, {"run_id": ""}])
def test_an_outcome_that_no_job_has_left_is_none(data, tmp_path):
    (tmp_path / OUTCOME).write_text(json.dumps(data))
    assert facts_in(tmp_path) == {}
    (tmp_path / OUTCOME).write_text(json.dumps({"run_id": "0123456789abcdef", "error": "x"}))
    assert facts_in(tmp_path)["error"] == "x"


@pytest.mark.parametrize("door", [experiment, results])
@pytest.mark.parametrize("words", [["--nope"], ["plan", "--nope"], [""], ["a\nb"]])
def test_the_other_commands_refuse_in_one_line(door, words, capsys, monkeypatch):
    if door is results and words[0] == "plan":
        return  # it hands that on to the other
    try:
        status = door(words)
    except SystemExit as end:
        status = end.code
    assert status in (1, 2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")


def test_arguments_hold_something():
    check_words(["plan", "-m", "bits=4", "--out=x", "a="])
    with pytest.raises(ValueError, match="'' after --out is empty"):
        check_words(["html", "--out", ""])
    with pytest.raises(ValueError, match="'--out=' after html is empty"):
        check_words(["html", "--out="])
    with pytest.raises(SystemExit, match="2"):
        ArgumentParser(prog="p").parse_args(["x"])


@pytest.mark.parametrize("text", ["preprocessing.std.x=/nowhere", "preprocessing.mean.a.b=1"])
def test_an_option_below_a_value_is_one_line(cli, text):
    outcome = cli(*TINY, "quant=rtn", text)
    assert outcome.status == 1
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    with pytest.raises(ValueError, match=r"compose|preprocessing"):
        composed([text])
