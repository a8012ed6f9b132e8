"""One GPU for each run at a time: which there are, and who has which. No GPU is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from hydra_plugins.flexround_launchers import gpus
from hydra_plugins.flexround_launchers.workers import Workers

ROOT = Path(__file__).resolve().parents[2]
TWO = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-11111111-aaaa-0000-0000-000000000000)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-22222222-aaaa-0000-0000-000000000000)
"""
CUT = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-11111111-aaaa-0000-0000-000000000000)
  MIG 3g.20gb     Device  0: (UUID: MIG-33333333-aaaa-0000-0000-000000000000)
  MIG 3g.20gb     Device  1: (UUID: MIG-44444444-aaaa-0000-0000-000000000000)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-22222222-aaaa-0000-0000-000000000000)
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that pretends what nvidia-smi -L prints, and what CUDA may see."""
    monkeypatch.setattr(gpus, "PROC", tmp_path / "none")

    def pretend(listed, visible=None, status=0):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "list").write_text(listed)
        path = folder / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n[ $1 = -L ] && cat {folder}/list\nexit {status}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        if visible is None:
            monkeypatch.delenv(gpus.VISIBLE, raising=False)
        else:
            monkeypatch.setenv(gpus.VISIBLE, visible)

    return pretend


@pytest.mark.parametrize(
    ("listed", "expected"),
    [("", []), (TWO, ["GPU-1", "GPU-2"]), (CUT, ["MIG-3", "MIG-4", "GPU-2"])],
)
def test_the_machines_gpus_are_counted_a_cut_card_by_its_parts(machine, listed, expected):
    machine(listed)
    assert [name[:5] for name in gpus.visible()] == expected


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("", []), ("-1", []), ("none", []), ("NoDevFiles", []), ("1", ["1"]), ("1, 0", ["1", "0"]),
        ("0,-1,1", ["0"]),  # CUDA stops at the first that is none
        ("GPU-22222222", ["GPU-22222222"]),
        ("MIG-GPU-11111111-aaaa/1/0,MIG-3333", ["MIG-GPU-11111111-aaaa/1/0", "MIG-3333"]),
    ],
)  # fmt: skip
def test_what_cuda_is_told_to_see_counts(machine, visible, expected):
    machine(TWO, visible)
    assert gpus.visible() == expected


def test_without_nvidia_smi_the_drivers_folders_are_counted(machine, tmp_path, monkeypatch):
    machine("", status=9)
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "proc" / name).mkdir(parents=True)
    assert gpus.visible() == []
    monkeypatch.setattr(gpus, "PROC", tmp_path / "proc")
    assert gpus.visible() == ["0", "1"]


def test_more_runs_than_gpus_are_told_of():
    assert gpus.shares(["0", "1"], 2) == "GPUs: 2, each run has one of its own"
    assert "shared by 5 runs at a time, up to 3 on one" in gpus.shares(["0", "1"], 5)


TAKE = """
import os, sys
from hydra_plugins.flexround_launchers import gpus
gpus.take(sys.argv[1:])
gpus.take(sys.argv[1:])
print(os.environ["CUDA_VISIBLE_DEVICES"], "torch" in sys.modules, flush=True)
sys.stdin.read()
"""


def taking(folder, names):
    """Return a process that takes one of the GPUs called so, and what it says of it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE, *names], env=environment, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    return process, process.stdout.readline().split()


def test_each_process_has_its_own_and_a_dead_ones_is_taken_again(tmp_path):
    start = partial(taking, tmp_path, ["GPU-a", "GPU-b"])
    processes, seen = zip(*[start() for _ in range(3)], strict=True)
    assert seen == (["GPU-a", "False"], ["GPU-b", "False"], ["GPU-a", "False"])
    processes[1].kill()
    processes[1].wait()
    last, own = start()
    assert own == ["GPU-b", "False"]
    for process in (processes[0], processes[2], last):
        process.communicate("")


def test_processes_that_outlive_a_batch_keep_their_gpus(tmp_path):
    """A search launches batch after batch, and joblib's processes live on between them."""

    def batch(seen):
        with Workers(SimpleNamespace(_backend=None), str(tmp_path)) as workers:
            (Path(workers.site.folder) / "123").touch()  # a process that says it is done
            process, own = taking(tmp_path, ["GPU-a", "GPU-b"])
            seen.append(own[0])
        return process

    seen = []
    processes = [batch(seen), batch(seen)]
    assert seen == ["GPU-a", "GPU-b"]
    for process in processes:
        process.communicate("")
    assert not (tmp_path / ".workers").exists()


def test_sweeps_at_one_time_keep_their_runs_apart(tmp_path):
    """Each sees some of the machine's GPUs; the one that both see is taken by the first."""
    first, one = taking(tmp_path, ["GPU-b", "GPU-c"])
    second, other = taking(tmp_path, ["GPU-b", "MIG-c/1/0"])
    assert (one[0], other[0]) == ("GPU-b", "MIG-c/1/0")
    for process in (first, second):
        process.communicate("")


def test_without_locks_a_gpu_is_taken_all_the_same(tmp_path):
    """A file stands where the folder would; file systems without locks are told alike."""
    (tmp_path / f"flexround-gpus-{os.getuid()}").touch()
    process, own = taking(tmp_path, ["GPU-a", "GPU-b"])
    assert own[0] in ("GPU-a", "GPU-b")
    assert "one may be shared" in process.communicate("")[1]


def test_a_sweeps_runs_see_one_gpu_each(machine, cli, tmp_path):
    """Pretended ones: the runs themselves compute on the CPU."""
    machine(TWO)
    outcome = cli(
        "-m", "model=efficientnet_lite0", "model.name=test_efficientnet", "quant=rtn",
        "bits=3,2", "hydra/launcher=joblib", "device=cuda:1",
    )  # fmt: skip
    assert outcome.status == 1
    assert "device=cuda:1: hydra/launcher=joblib gives each run a GPU of its own" in outcome.err
