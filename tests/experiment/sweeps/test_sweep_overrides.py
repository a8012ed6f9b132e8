"""Every way in which Hydra writes a sweep: `plan`, the sweep itself and `status` read the same."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from experiment.__main__ import main as experiment
from experiment.sweeps.plan import jobs, plan
from results.records.store import Store
from tests.conftest import TINY

QUICK = (*TINY, "quant=rtn", "num_samples=32")

# The jobs of each sweep as Hydra's documentation (override grammar, extended) has them.
SWEEPS = {
    "bits=3,4": ["bits=3", "bits=4"],
    "bits=choice(3,4)": ["bits=3", "bits=4"],
    "bits=range(3,5)": ["bits=3", "bits=4"],
    "bits=range(8,2,-2)": ["bits=8", "bits=6", "bits=4"],
    "ranges.p=range(2,3,0.5)": ["ranges.p=2.0", "ranges.p=2.5"],
    "bits=sort(4,2,3,reverse=true)": ["bits=4", "bits=3", "bits=2"],
    "bits=tag(small,choice(2,3))": ["bits=2", "bits=3"],
    "bits=int(choice(2,3.0))": ["bits=2", "bits=3"],
    "quant=glob(l*)": ["quant=lrq", "quant=lwc"],
    "quant=glob([fl*,r*],exclude=*_*)": ["quant=flexround", "quant=rtn"],
    "preprocessing.mean=[1,2,3],[4,5,6]": [
        "preprocessing.mean=[1,2,3]",
        "preprocessing.mean=[4,5,6]",
    ],
    "+task.x={a:x},{a:y,b:z}": ["+task.x={a:x}", "+task.x={a:y,b:z}"],
    "checkpoint='a=1','b,2'": ["checkpoint='a=1'", "checkpoint='b,2'"],
    'checkpoint="a b"': ['checkpoint="a b"'],
    "checkpoint=a\\,b,c": ["checkpoint=a\\,b", "checkpoint=c"],
    "checkpoint=null,a/b.pth": ["checkpoint=null", "checkpoint=a/b.pth"],
}


@pytest.mark.parametrize(("sweep", "values"), SWEEPS.items(), ids=SWEEPS)
def test_a_sweep_has_the_jobs_that_hydra_gives_it(sweep, values):
    assert jobs([sweep, "seed=1"]) == [[value, "seed=1"] for value in values]


def test_the_first_sweep_varies_slowest():
    found = jobs(["bits=2,3", "seed=range(0,2)"])
    assert found == [[f"bits={b}", f"seed={s}"] for b in (2, 3) for s in (0, 1)]


def test_shuffle_gives_every_value_once():
    found = jobs(["bits=shuffle(range(2,9))"])
    assert sorted(found) == [[f"bits={bits}"] for bits in range(2, 9)]


def test_one_value_written_twice_is_one_run(capsys, results_dir):
    asked = ["quant=flexround", "recon.lr=1e-3,0.001", f"results_dir={results_dir}"]
    first, second = plan(asked)
    assert first.run_id == second.run_id
    assert experiment(["plan", *asked]) == 0
    assert "\n  1 of them have another one's configuration" in capsys.readouterr().out


def test_an_experiments_own_sweep_is_read_with_functions_too():
    params = {"bits": "range(2,4)", "quant": "glob(rt*)", "seed": "sort(1,0)"}
    given = [f"+hydra.sweeper.params.{key}='{value}'" for key, value in params.items()]
    expected = [[f"bits={b}", "quant=rtn", f"seed={s}"] for b in (2, 3) for s in (0, 1)]
    assert jobs(given) == expected
    # The command line wins over it, in the experiment's order.
    assert jobs([*given, "bits=8", "scale=smoke"])[0] == [
        "bits=8", "quant=rtn", "seed=0", "scale=smoke",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("bits=interval(2,4)", "interval() names no values"),
        ("bits=range(4,2)", "the sweep has no runs"),
        ("quant=glob(zz*)", "the sweep has no runs"),
        ("experiment=ablation_lr,ablation_iters", "an experiment is a sweep of its own"),
        ("hydra/launcher=basic,joblib", "Sweeping over Hydra's configuration is not supported"),
    ],
)
def test_what_is_no_sweep_is_one_line_of_plan_and_run(cli, capsys, sweep, words):
    assert experiment(["plan", sweep]) == 1
    told = capsys.readouterr().err
    assert words in told
    assert len(told.splitlines()) == 1
    quick = [word for word in QUICK if word.partition("=")[0] != sweep.partition("=")[0]]
    outcome = cli("-m", *quick, sweep)
    assert outcome.status == 1
    assert words in outcome.err.splitlines()[-1]


def status(capsys, folder):
    capsys.readouterr()
    assert experiment(["status", str(folder)]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    "sweep",
    [["bits=range(3,5)"], ["quant=glob(rt*)", "bits=choice(3,4)"], ["bits=shuffle(range(3,5))"],
     ["+hydra.sweeper.params.bits='3,4'"]],
    ids=["range", "glob", "shuffle", "params"],
)  # fmt: skip
def test_status_reads_the_sweep(cli, capsys, results_dir, tmp_path, sweep):
    given = [o for o in QUICK if not (o.startswith("quant=") and "glob" in sweep[0])]
    outcome = cli("-m", *given, *sweep)
    assert outcome.status == 0, outcome.err
    folder = tmp_path / "sweep"
    assert status(capsys, folder) == [f"{folder}: 2 runs, 2 done"]
    # One is lost: which, its own folder tells, however the sweep would be expanded now.
    (own,) = (o for o in OmegaConf.load(folder / "1/.hydra/overrides.yaml") if "bits" in o)
    for record in Store(results_dir).load():
        if f"bits={record.bits}" == own:
            Store(results_dir).path(record.run_id).unlink()
    lines = status(capsys, folder)
    assert lines[0] == f"{folder}: 2 runs, 1 done, 1 lost"
    assert lines[1].split()[:3] == ["#1", "lost", f"{own}:"]


def test_status_of_a_shuffled_sweep_names_what_has_not_started(cli, capsys, tmp_path):
    assert cli("-m", *QUICK, "bits=shuffle(range(3,7))").status == 0
    folder = tmp_path / "sweep"
    started = {
        str(o) for n in (0, 1) for o in OmegaConf.load(folder / f"{n}/.hydra/overrides.yaml")
    }
    for number in (2, 3):
        (folder / str(number)).rename(tmp_path / f"gone{number}")
    lines = status(capsys, folder)
    assert lines[0] == f"{folder}: 4 runs, 2 done, 2 lost"
    lost = {line.split()[2].rstrip(":") for line in lines[1:3]}
    assert lost == {f"bits={bits}" for bits in range(3, 7)} - started
