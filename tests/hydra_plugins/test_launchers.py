"""The launchers of a sweep: what they are told, what they refuse, and that they lose nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_module
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

import run  # noqa: F401  registers the schemas
from experiment.sweeps import slurm_queue
from flexround.utils import leaving
from hydra_plugins.flexround_launchers import slurm as slurm_module
from hydra_plugins.flexround_launchers import waiting
from hydra_plugins.flexround_launchers.options import minutes, parameters
from results.records.store import Store
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[2]
SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"


@pytest.fixture
def submitit():
    reason = "hydra-submitit-launcher is not installed; pip install -e '.[slurm]'"
    return pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason=reason)


def launcher(name, *overrides):
    with initialize_config_module("conf", version_base="1.3"):
        given = [f"hydra/launcher={name}", *overrides]
        return compose("config", given, return_hydra_config=True).hydra.launcher


@pytest.mark.parametrize("name", ["joblib", "slurm"])
def test_a_launcher_composes_and_is_one_that_hydra_knows(name):
    options = launcher(name)
    module, _, kind = options._target_.rpartition(".")
    assert module == f"hydra_plugins.flexround_launchers.{name}"
    known = {f"{c.__module__}.{c.__name__}" for c in Plugins.instance().discover()}
    assert f"{module}.{kind}" in known
    assert all(value is None or value != "???" for value in options.values())


def test_options_reach_submitit_in_its_own_words(commands):
    commands("sinfo", "echo 'debug* (null)'; echo 'gpu gpu:8'")
    given = parameters(launcher("slurm"))
    assert "gpus_per_node" not in given
    assert "slurm_partition" not in given
    options = launcher(
        "slurm", "hydra.launcher.partition=gpu", "hydra.launcher.memory=32",
        "hydra.launcher.time=8:00:00", "hydra.launcher.parallel=4", "hydra.launcher.cpus=3",
        "+hydra.launcher.sbatch.qos=high",
    )  # fmt: skip
    given = parameters(options)
    assert given["slurm_partition"] == "gpu"
    assert given["gpus_per_node"] == 1  # the partition has some
    several = launcher("slurm", "hydra.launcher.partition='debug,gpu'")
    assert parameters(several)["gpus_per_node"] == 1
    assert given["mem_gb"] == 32
    assert given["timeout_min"] == 480
    assert given["slurm_array_parallelism"] == 4
    assert given["cpus_per_task"] == 3
    assert given["slurm_additional_parameters"] == {"requeue": True, "qos": "high"}
    none = parameters(launcher("slurm", "hydra.launcher.partition=gpu", "hydra.launcher.gpus=0"))
    assert "gpus_per_node" not in none


@pytest.mark.parametrize(
    ("time", "expected"),
    [(90, 90), ("90", 90), ("90:30", 90), ("1:30:00", 90), ("1-12", 2160), ("1-12:30:00", 2190)],
)
def test_a_time_is_read_as_sbatch_reads_it(time, expected):
    assert minutes(time) == expected


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Return a function that puts a shell script on PATH, where nothing of SLURM is otherwise."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "cat", "env", "tail"):
        folder.joinpath(name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(folder))

    def put(name, script):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return put


def refused(outcome):
    """Return the one line that a command ended with."""
    assert outcome.status == 1
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    return lines[0]


SLURM = ("-m", *TINY, "quant=rtn", "bits=3,2", "hydra/launcher=slurm")


def test_without_the_plugin_the_line_says_what_to_install(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, SUBMITIT, None)
    line = refused(cli(*SLURM))
    assert "hydra_submitit_launcher is not installed; pip install -e '.[slurm]'" in line


def test_without_slurm_the_line_says_where_to_run(cli, submitit, commands):
    line = refused(cli(*SLURM))
    assert "there is no sbatch on this machine" in line
    assert "apt install slurm-wlm" in line


def test_a_partition_that_is_not_there_is_one_line_with_those_that_are(cli, submitit, commands):
    commands("srun", "exit 1")
    commands("squeue", "exit 1")
    commands("sinfo", "echo 'debug* (null)'; echo 'gpu gpu:8'")
    commands(
        "sbatch",
        "echo 'sbatch: error: invalid partition specified: nope' >&2\n"
        "echo 'sbatch: error: Batch job submission failed: Invalid partition name' >&2\nexit 1",
    )
    line = refused(cli(*SLURM, "hydra.launcher.partition=nope"))
    assert "Invalid partition name" in line
    assert "hydra.launcher.partition=nope" in line
    assert "sinfo lists: debug, gpu" in line


@pytest.mark.parametrize(
    ("args", "words"),
    [(["hydra/launcher=slrum"], "available hydra/launcher: joblib, slurm"),
     (["hydra/launcher=slurm", "hydra.launcher.partitio=a"], "did you mean partition?"),
     (["hydra/launcher=slurm", "hydra.launcher.gpus=many"], "could not be converted to Integer"),
     (["hydra/launcher=slurm", "hydra.launcher.time=soon"], "hydra.launcher.time=soon: give"),
     (["hydra/launcher=slurm", "hydra.launcher.time=1"], "leave nothing of hydra.launcher.time=1"),
     (["hydra/launcher=slurm", "hydra.launcher.parallel=0"], "parallel=0: give 1 or more"),
     (["hydra/launcher=slurm", "hydra.launcher.restarts=-1"], "restarts=-1: give 0 or more"),
     (["hydra/launcher=slurm", "hydra.launcher.warning=-5"], "warning=-5: give 0 or more"),
     (["hydra/launcher=slurm", "hydra.launcher.cpus=0"], "cpus=0: give 1 or more"),
     (["hydra/launcher=slurm", "hydra.launcher.memory=-2"], "memory=-2.0: give 0 or more"),
     (["hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs=0: give 1")],
)  # fmt: skip
def test_a_wrong_option_is_one_line(cli, args, words):
    assert words in refused(cli("-m", *TINY, "quant=rtn", *args))


def test_a_launcher_of_a_single_run_is_refused(cli):
    assert "add -m" in refused(cli(*TINY, "quant=rtn", "hydra/launcher=joblib"))


def test_a_refusal_for_want_of_more_names_the_option():
    text = "sbatch: error: Batch job submission failed: Invalid job array specification"
    assert slurm_queue.refusal(text, None).endswith(
        "hydra.sweeper.max_batch_size=1000 splits the sweep"
    )


def test_a_job_that_dies_without_a_result_ends_the_wait(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(waiting, "LOOK", 0)
    monkeypatch.setattr(waiting, "GRACE", 1)
    looks = iter([None, {"7_0": "RUNNING", "7_1": "PENDING", "7_2": "OUT_OF_MEMORY"}, {}])
    last: dict[str, str] = {}

    def queue():
        nonlocal last
        found = next(looks, last)
        last = last if found is None else found
        reason = "PartitionConfig"
        return (
            None if found is None else {j: slurm_queue.Entry(s, reason) for j, s in found.items()}
        )

    monkeypatch.setattr(slurm_queue, "queue", queue)
    jobs = {}
    for number in range(4):
        folder = tmp_path / f"7_{number}"
        folder.mkdir()
        paths = SimpleNamespace(folder=folder, result_pickle=folder / "result.pkl")
        jobs[number] = SimpleNamespace(job_id=f"7_{number}", paths=paths)
    jobs[3].paths.result_pickle.touch()
    states = dict(waiting.ended(jobs))
    assert states.pop(3) is None
    assert states[2] == "OUT_OF_MEMORY" or states[2] == "no longer known"
    assert set(states) == {0, 1, 2}
    assert "PartitionConfig" in caplog.text


# A sweep's command without torch: what each of its jobs does stands in {body}.
APP = """
import os, signal, sys
import hydra
from experiment.errors import one_line_errors
from experiment.job import write_outcome
from experiment.config import register
register()

@hydra.main(version_base="1.3", config_path="{conf}", config_name="config")
def main(cfg):
    write_outcome(name=f"run{{cfg.bits}}", threads=os.environ["OMP_NUM_THREADS"])
    {body}
    return float(cfg.bits)

if __name__ == "__main__":
    with one_line_errors():
        main()
"""


@pytest.fixture
def app(tmp_path):
    """Return a function that sweeps with the given body of a job."""

    def sweep(body, *args):
        script = tmp_path / "app.py"
        script.write_text(APP.format(conf=ROOT / "conf", body=body))
        command = [
            sys.executable, str(script), "-m", *args, f"hydra.sweep.dir={tmp_path}/sweep",
            f"results_dir={tmp_path}/results",
        ]  # fmt: skip
        env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        env["PYTHONPATH"] = str(ROOT)
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    return sweep


def outcomes(tmp_path, number):
    return tmp_path.joinpath("sweep", str(number), "outcome.json").read_text()


KILL = "if cfg.bits == 4: os.kill(os.getpid(), signal.SIGKILL)"


def test_joblib_outlives_a_process_that_is_killed(app, tmp_path):
    done = app(KILL, "bits=3,4,5,6,7", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: 1 of 5 runs failed, the first: its process was killed")
    threads = max(len(os.sched_getaffinity(0)) // 2, 1)
    for number in (0, 2, 3, 4):
        assert "error" not in outcomes(tmp_path, number)
        assert f'"threads": "{threads}"' in outcomes(tmp_path, number)


# Holds something for as long as it is at work, says so, and is at work until it is told to end.
WORK = """
    from pathlib import Path
    from flexround.utils import leaving
    import time
    held = Path("{folder}", str(cfg.bits))
    with leaving.undoing(lambda: held.unlink(missing_ok=True)):
        held.touch()
        time.sleep(120)
"""


@pytest.mark.parametrize(
    ("number", "everyone", "line"),
    [
        (signal.SIGINT, True, "interrupted"),  # what a terminal does
        (signal.SIGTERM, False, "ended by SIGTERM"),
        (signal.SIGHUP, True, "ended by SIGHUP"),
        (signal.SIGKILL, False, None),
    ],
)
@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_joblib_ends_with_its_processes_which_give_back_what_they_hold(
    tmp_path, number, everyone, line, times
):
    held, script = tmp_path / "held", tmp_path / "app.py"
    held.mkdir()
    text = APP.format(conf=ROOT / "conf", body=WORK.format(folder=held).strip())
    text = text.replace(
        "with one_line_errors():", "with leaving.door('go on with it'), one_line_errors():"
    )
    script.write_text(f"from flexround.utils import leaving\n{text}")
    command = [
        sys.executable, str(script), "-m", "bits=3,4", "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={tmp_path}/sweep",
    ]  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    wait_until(lambda: len(list(held.iterdir())) == 2)
    for _ in range(times):
        (os.killpg if everyone else os.kill)(process.pid, number)
    said = process.communicate(timeout=30)[1]
    if line is not None:
        assert process.returncode == 128 + number
        assert said.splitlines()[3:] == [f"{line}; go on with it"]  # after the list of the runs
    wait_until(lambda: not list(held.iterdir()))
    wait_until(lambda: not group(process.pid))


def group(leader):
    """Return the living processes of a group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of, *_ = stat.read_text().rpartition(")")[2].split()
            found += [stat.parent.name] if int(of) == leader and state != "Z" else []
    return found


def wait_until(happened, seconds=60):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.05)


def test_slurms_jobs_outlive_the_launcher_that_a_signal_ends(monkeypatch, capsys):
    """Nothing is told to the array; the line names it."""

    def wait(jobs):
        os.kill(os.getpid(), signal.SIGTERM)
        yield time.sleep(5), None

    names = ("partition", "account", "gpus", "cpus", "memory", "time", "restarts", "warning")
    options = dict.fromkeys((*names, "parallel"))
    launcher = slurm_module.SlurmLauncher(**options, setup=[], sbatch={})
    launcher.config = OmegaConf.create({"hydra": {"sweep": {"dir": "sweep"}}})
    monkeypatch.setattr(launcher, "_submit", lambda *_: [SimpleNamespace(job_id="75_0")])
    monkeypatch.setattr(slurm_module, "ended", wait)
    with pytest.raises(SystemExit) as end, leaving.door("the door's own"):
        launcher.launch([["bits=3"]], 0)
    assert end.value.code == 143
    assert capsys.readouterr().err.splitlines()[-1] == (
        "ended by SIGTERM; SLURM job 75 goes on without this process; `scancel 75` ends it, and "
        "the same command again computes only what is left"
    )


def test_joblib_ends_with_the_table(cli, results_dir):
    args = ("quant=rtn,flexround", "bits=3,2", "recon.iters=5", "num_samples=64")
    outcome = cli("-m", *TINY, *args, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert outcome.status == 0, outcome.err
    assert [record.status for record in Store(results_dir).load()] == ["ok"] * 4
    assert len([line for line in outcome.out.splitlines() if line.startswith("|")]) == 4


@pytest.fixture
def slurm(submitit):
    """Skip where no SLURM answers."""
    if shutil.which("sinfo") is None:
        pytest.skip("SLURM is not installed (docs/sweeps.md says how to try it)")
    if not slurm_queue.partitions():
        pytest.skip("sinfo does not answer: SLURM is not running")


@pytest.mark.slurm
def test_slurm_runs_a_sweep_to_its_table(slurm, results_dir, cache_dir, tmp_path):
    command = [
        sys.executable, str(ROOT / "run.py"), "-m", *TINY, "quant=rtn,flexround", "bits=3,2",
        "recon.iters=5", "num_samples=64", "hydra/launcher=slurm", f"results_dir={results_dir}",
        f"cache_dir={cache_dir}", f"hydra.sweep.dir={tmp_path}/sweep",
    ]  # fmt: skip
    # From another folder: the node must find the checkout all the same.
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = Store(results_dir).load()
    assert [record.status for record in records] == ["ok"] * 4
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert all(name in done.stdout for name in ("W3", "W2", "FP", "rtn", "flexround"))
    assert len(list(tmp_path.glob("sweep/.submitit/*_*/*.out"))) == 4


@pytest.mark.slurm
def test_slurm_outlives_a_job_that_is_killed(slurm, app, tmp_path):
    done = app(KILL, "bits=3,4,5", "hydra/launcher=slurm")
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "error: 1 of 3 runs failed, the first: SLURM job" in last
    assert "its log is" in last
    assert [("error" in outcomes(tmp_path, n)) for n in range(3)] == [False, True, False]


@pytest.mark.slurm
def test_slurm_queues_a_preempted_run_again(slurm, app, tmp_path):
    body = (
        "write_outcome(starts=os.environ.get('SLURM_RESTART_COUNT', 'first'))\n"
        "    if 'SLURM_RESTART_COUNT' not in os.environ: os.kill(os.getpid(), signal.SIGUSR2)"
    )
    done = app(body, "bits=3,4", "hydra/launcher=slurm")
    assert done.returncode == 0, done.stderr
    for number in range(2):
        assert '"starts": "1"' in outcomes(tmp_path, number)
