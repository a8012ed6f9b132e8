"""The plan of a sweep: how many runs, which are done, what they need."""

from __future__ import annotations

import re

import pytest
from omegaconf import OmegaConf

from experiment.__main__ import main
from experiment.sweeps.plan import EXPERIMENTS, jobs, needs, planned, report
from tests.conftest import TINY, some_slow

ABLATIONS = sorted(path.stem for path in EXPERIMENTS.glob("ablation_*.yaml"))
PAPER = sorted(path.stem for path in (EXPERIMENTS / "paper").glob("*.yaml"))
# Models x methods x bits x settings x seeds, as the paper's tables have them.
RUNS = {
    "figure07": 7 * 2 * 5, "table01": 3 * 5 * 5, "table02": 3 * 3 * 3 * 5,
    "table03": 3 * 2 * 2 * 2 * 5, "table04": 5 * 3 * 2, "table05": 6 * 2 * 2, "table06": 2 * 2,
    "table07": 2 * 2, "table08": 3 * 3 * 3 * 5, "table09": 3 * 2 * 2 * 2 * 5, "table10": 2 * 2 * 5,
    "table11": 3 * 3 * 3 * 5, "table12": 2 * 2, "table15": 5 * 8 * 2, "table16": 5 * 3 * 6,
    "table19": 3 * 2 * 2, "table20": 3 * 2, "table21": 3 * 2 * 2, "table22": 3 * 2,
    "table23": 3 * 2 * 2, "table24": 3 * 2 * 2 * 2,
}  # fmt: skip


def said(capsys, *args):
    capsys.readouterr()
    status = main(["plan", *args])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_every_table_with_results_of_methods_has_its_experiment():
    # Tables 13, 14, 17 and 18 hold hyper-parameters, which conf/tuned/ has.
    assert sorted(RUNS) == PAPER


@pytest.mark.parametrize("name", PAPER)
def test_an_experiment_has_as_many_runs_as_its_table(name):
    assert len(jobs([f"experiment=paper/{name}"])) == RUNS[name]


@pytest.mark.parametrize("scale", some_slow(["full", "smoke"], ["full"]))  # test_paper_protocols.py
@pytest.mark.parametrize("name", PAPER)
def test_runs_of_an_experiment_compose_under_both_scales(name, scale):
    given = [f"experiment=paper/{name}", "seed=0", f"scale={scale}"]
    asked = jobs(given)
    assert len({tuple(sorted(job)) for job in asked}) == len(asked), "no two runs are the same"
    for run in planned(asked[:: max(1, len(asked) // 2)], given):  # all of them take minutes
        assert run.refused is None
        assert (run.options["recon"]["iters"] == 2) == (scale == "smoke")


@pytest.mark.parametrize("scale", ["full", "smoke"])
@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_varies_what_its_view_is_told_to(name, scale):
    asked = jobs([f"experiment={name}", "seed=0", f"scale={scale}"])
    setting = (
        (EXPERIMENTS / f"{name}.yaml").read_text().rsplit("results ablation ", 1)[1].split()[0]
    )
    ends = [OmegaConf.create(run.options) for run in planned([asked[0], asked[-1]], asked[0])]
    first, last = (OmegaConf.select(cfg, setting) for cfg in ends)
    assert first != last
    if scale == "smoke":
        assert len(asked) <= 8


def test_options_narrow_an_experiment():
    assert len(jobs(["experiment=paper/table02", "bits=4", "seed=0", "model=resnet18"])) == 3


def test_the_plan_tells_what_is_done_and_what_is_missing(cli, results_dir, capsys, tmp_path):
    sweep = (*TINY, "quant=rtn", "num_samples=32", "bits=3,4", f"results_dir={results_dir}")
    assert said(capsys, *sweep) == (
        0,
        "2 runs: 2 to do\n     2 of efficientnet_lite0 on digits\n"
        "time: no record of a run like these 2 yet\n",
        "",
    )
    assert cli(*(a for a in sweep if a != "bits=3,4"), "bits=3").status == 0
    out = said(capsys, *sweep)[1]
    assert out.startswith("2 runs: 1 done, 1 to do\n")
    assert re.search(r"^time: about \d+ minutes for 1 runs, one at a time$", out, re.MULTILINE)
    out = said(capsys, "task=imagenet", f"results_dir={results_dir}", f"checkpoint={tmp_path}/no")[
        1
    ]
    assert "MISSING        imagenet_dir=PATH\n" in out
    assert f"MISSING        checkpoint {tmp_path}/no\n" in out


def test_the_plan_counts_what_is_to_be_computed_again(cli, results_dir, cache_dir, capsys):
    where = (f"results_dir={results_dir}", f"cache_dir={cache_dir}")
    one = (*TINY, "quant=rtn", "num_samples=32", *where)
    failing = (*TINY, "quant=rtn", "num_samples=5000", *where)
    assert (cli(*one).status, cli(*failing).status) == (0, 1)
    assert said(capsys, *one)[1].startswith("1 runs: 1 done\n")
    out = said(capsys, *one, "rerun=true")[1]
    assert out.startswith("1 runs: 1 to do\n")
    assert "minutes for 1 runs" in out
    assert said(capsys, *failing)[1].startswith("1 runs: 1 failed\n")
    assert said(capsys, *failing, "retry_failed=true")[1].startswith("1 runs: 1 to do\n")
    assert said(capsys, *one, "retry_failed=true")[1].startswith("1 runs: 1 done\n")


@pytest.mark.parametrize(
    ("fine", "refused"),
    [
        (["quant=rtn"], ["quant=rtn", "ranges=imatrix"]),
        (["quant=gptq"], ["quant=gptq", "recon=block"]),
        (["bits=4"], ["recon.quant_prob=0.3"]),
    ],
)
def test_what_run_py_would_refuse_is_not_counted_as_to_do(cli, capsys, fine, refused):
    assert said(capsys, *TINY, *fine)[1].startswith("1 runs: 1 to do\n")
    done = cli(*TINY, *refused)
    assert done.status != 0
    out = said(capsys, *TINY, *refused)[1].splitlines()
    assert out == [
        "1 runs: 1 refused",
        "     1 refused: " + done.err.removeprefix("error: ").strip(),
        "time: none of them can be run",
    ]


def test_equal_configurations_take_the_time_of_one(cli, results_dir, cache_dir, capsys):
    where = (f"results_dir={results_dir}", f"cache_dir={cache_dir}")
    assert cli(*TINY, "quant=rtn", "num_samples=32", "bits=3", *where).status == 0
    out = said(capsys, *TINY, "quant=rtn", "num_samples=32", "seed=0,0,0", *where)[1]
    assert out.startswith("3 runs: 3 to do\n  2 of them have another one's configuration")
    assert "minutes for 1 runs" in out


def test_the_refused_runs_of_a_sweep_stand_beside_the_others(capsys):
    out = said(capsys, *TINY, "quant=rtn", "bits=2,3,4", "ranges=lp,imatrix")[1].splitlines()
    assert out[0] == "6 runs: 3 to do, 3 refused"
    assert out[1].startswith("     3 refused: ranges=imatrix is for ")
    assert out[2] == "     3 of efficientnet_lite0 on digits"


@pytest.mark.slow  # composes them all
def test_without_a_sweep_all_experiments_are_listed(capsys):
    lines = said(capsys)[1].splitlines()
    assert len(lines) == len(list(EXPERIMENTS.rglob("*.yaml")))
    assert any(line.startswith("paper/table02       135 runs  Table 2, ") for line in lines)


def test_an_experiment_that_does_not_exist_is_one_line(capsys):
    status, _, err = said(capsys, "experiment=paper/table99")
    assert status == 1
    assert err.startswith("error: Could not find 'experiment/paper/table99'; did you mean paper/ta")
    assert len(err.splitlines()) == 1


def test_the_plan_tells_it_where_gptq_meets_flexround(tmp_path):
    """GPTQ's paper: per row, C4 128 x 2048, test; FlexRound's: per tensor, own, validation."""
    told = report(["model=opt_125m", "quant=gptq,flexround", f"results_dir={tmp_path}"])
    for line in (
        "granularity differs between methods of this sweep: gptq per_channel, flexround per_tensor",
        "calibration differs between methods of this sweep: gptq c4, flexround own",
        "task.seq_len differs between methods of this sweep: gptq 2048, flexround 1024",
        "protocol differs between methods of this sweep: gptq gptq test 2048, "
        "flexround run_clm validation 1024",
    ):
        assert line in told.splitlines()
    same = ["granularity=per_channel", "calibration=own", "protocol=run_clm", "task.seq_len=1024"]
    told = report(["model=opt_125m", "quant=gptq,flexround", *same, f"results_dir={tmp_path}"])
    assert [line.split()[0] for line in told.splitlines() if "differs" in line] == ["ranges"]


def test_the_plan_tells_it_where_an_ablation_lacks_the_methods_own_schedule(tmp_path):
    """FlexRound's Table 18 has no ablations: only FlexRound has 500 iterations on PTB."""
    both = ["model=gpt_neo_125m", "task=ptb", f"results_dir={tmp_path}",
            "quant=flexround,flexround_fixed_s1"]  # fmt: skip
    assert [line for line in report(both).splitlines() if "differs" in line] == [
        "recon.lr differs between variants of FlexRound in this sweep: flexround 0.005, "
        "flexround_fixed_s1 0.001",
        "recon.iters differs between variants of FlexRound in this sweep: flexround 500, "
        "flexround_fixed_s1 5000",
    ]
    same = report([*both, "recon.lr=5e-3", "recon.iters=500"])
    assert "differs" not in same


def test_a_sweeps_end_tells_the_defaults_that_differ(cli):
    outcome = cli("-m", *TINY, "quant=rtn,gptq", "bits=4", "num_samples=32")
    assert outcome.status == 0, outcome.err
    assert "ranges differs between methods of this sweep: rtn lp, gptq min_max\n" in outcome.err
    assert "granularity differs" not in outcome.err, "per-tensor for all methods in vision"


def test_the_plan_names_c4_where_it_is_calibrated_on(capsys, tmp_path):
    out = said(capsys, "model=opt_125m", "quant=gptq")[1]
    assert "  not looked for c4 from its hub, or calibration_dir=\n" in out
    out = said(capsys, "model=opt_125m", "quant=gptq", f"calibration_dir={tmp_path}/no")[1]
    assert f"  MISSING        calibration_dir={tmp_path}/no\n" in out
    assert "C4" not in said(capsys, "model=opt_125m", "quant=flexround")[1]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return a home folder with data in it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data" / "val").mkdir(parents=True)
    (tmp_path / "data" / "text.txt").write_text("one\n")
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "told", "there"),
    [
        (["task=text"], "data_dir=~/data/text.txt", True),
        (["task=text"], "data_dir=~/data", True),
        (["task=text"], "data_dir=~/nowhere", False),
        (["task=wikitext2"], "data_dir=~/data", True),
        (["task=wikitext2"], "data_dir=~/data/text.txt", False),  # its files lie in a folder
        (["calibration=c4"], "calibration_dir=~/data", True),
        (["calibration=c4"], "calibration_dir=~/nowhere", False),
        ([], "checkpoint=~/data", True),
        ([], "checkpoint=~/nowhere", False),
        ([], "checkpoint=package:no_such/weights", False),
        ([], "checkpoint=some/where", None),  # an id of the hub
        ([], "model.source=~/data", True),
        ([], "model.source=~/nowhere", False),
        (["task=wikitext2"], "model.source=/nonexistent/net", False),
        (["model=resnet18", "task=imagenet"], "imagenet_dir=~/data", True),
        (["model=resnet18", "task=imagenet"], "imagenet_dir=~/nowhere", False),
        (["model=resnet18", "task=imagenet"], "checkpoint=some/where", False),
    ],
)
def test_a_place_is_there_where_its_task_finds_it(home, asked, told, there):
    quoted = re.sub(r"=(.*)", r"='\1'", told)  # a shell's quotes do not reach Hydra
    options = ["model=tiny_llama", *asked, quoted, f"results_dir={home}", f"cache_dir={home}"]
    (run,) = planned([options], options)
    assert dict(needs(run))[told.replace("checkpoint=", "checkpoint ")] is there
