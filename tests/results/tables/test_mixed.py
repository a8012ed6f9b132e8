"""A cell whose runs differ in what no setting names says so."""

from __future__ import annotations

import pandas as pd
import pytest

from results.records.store import Store
from results.tables.ablation import ablation
from results.tables.ablation import render as render_ablation
from results.tables.leaderboard import leaderboard, render
from results.tables.mixed import mixed
from tests.results.records.test_store import record

SAME = {"device": "cpu", "precision": "float32", "processor": "P", "threads": 2,
        "versions": {"torch": "2.9.0"},
        "network": "a" * 64, "evaluation_data": "d" * 64,
        "evaluation": {"calibration_images": "train"}}  # fmt: skip


def seeds(*changes):
    """Return runs of one cell, one a seed, each with its changes."""
    return [
        record(f"r{seed}", 97.0 + seed, seed=seed, settings={"bits": 4, "seed": seed},
               started=str(seed), **SAME | change)
        for seed, change in enumerate(changes)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"threads": 1}, "threads (2, 1)"),
        ({"processor": "Q"}, "processor (P, Q)"),
        ({"versions": {"torch": "2.10.0"}}, "torch (2.9.0, 2.10.0)"),
        ({"network": "b" * 64}, "network (sha256:aaaaaaaa, sha256:bbbbbbbb)"),
        ({"evaluation_data": "e" * 64}, "evaluation data (sha256:dddddddd, sha256:eeeeeeee)"),
        ({"evaluation": {"calibration_images": "val"}}, "calibration images (train, val)"),
        ({"precision": "bfloat16"}, "precision (float32, bfloat16)"),
        ({"device": "NVIDIA H100"}, "device (cpu, NVIDIA H100)"),
        ({"threads": 1, "processor": "Q"}, "threads (2, 1); processor (P, Q)"),
    ],
)
def test_a_mixed_cell_is_marked_and_told(change, told):
    rows = seeds({}, change)
    assert mixed(rows) == told
    text = render(leaderboard(rows), "markdown")
    assert "97.50 \N{PLUS-MINUS SIGN} 0.71\N{DAGGER} (-0.50)" in text
    assert f"\N{DAGGER} runs of one cell differ in {told}: resnet18 flexround 4 bit" in text
    assert r"$\dagger$" in render(leaderboard(rows), "latex")


def test_runs_alike_have_no_mark():
    rows = seeds({}, {})
    assert mixed(rows) is None
    assert "\N{DAGGER}" not in render(leaderboard(rows), "markdown")
    assert leaderboard(rows)["network"].tolist() == ["sha256:aaaaaaaa"]


def test_what_a_record_does_not_know_is_no_difference():
    old = {
        "precision": "",
        "processor": "",
        "threads": None,
        "network": None,
        "evaluation_data": None,
    }
    assert mixed(seeds({}, old)) is None


def test_threads_of_the_cpu_do_not_count_on_a_gpu():
    gpu = {"device": "NVIDIA H100"}
    assert mixed(seeds(gpu, {**gpu, "threads": 16, "processor": "Q"})) is None


def test_a_failed_run_mixes_nothing():
    failed = record("f", status="failed", seed=2, settings={"bits": 4, "seed": 2}, **SAME
                    | {"threads": 7})  # fmt: skip
    assert mixed([*seeds({}), failed]) is None


def test_cells_of_several_networks_are_told_of_though_each_is_sound():
    rows = [
        record("a", 97.0, bits=4, settings={"bits": 4, "seed": 0}, **SAME),
        record("b", 90.0, bits=3, settings={"bits": 3, "seed": 0}, **SAME | {"network": "b" * 64}),
    ]
    text = render(leaderboard(rows), "markdown")
    assert "\N{DAGGER}" not in text
    assert text.splitlines()[-1] == (
        "resnet18 on digits: the cells are of 2 full-precision networks "
        "(sha256:aaaaaaaa, sha256:bbbbbbbb)"
    )


def test_an_ablation_tells_of_it_too():
    rows = []
    for iters in (10, 20):
        for seed, threads in enumerate((1, 2)):
            settings = {"bits": 4, "seed": seed, "recon": {"iters": iters}}
            rows.append(record(f"{iters}-{seed}", 97.0, seed=seed, settings=settings,
                               **SAME | {"threads": threads}))  # fmt: skip
    found = ablation(rows, "recon.iters", [])
    text = render_ablation(found, "recon.iters", "markdown")
    assert "\N{DAGGER} runs of one cell differ in threads (1, 2)" in text


def test_the_csv_has_a_column_of_it(tmp_path):
    store = Store(tmp_path)
    for row in seeds({}, {"threads": 1}):
        store.write(row)
    table = leaderboard(store.load())
    assert table["mixed"].tolist() == ["threads (2, 1)"]
    assert pd.isna(leaderboard(seeds({}))["mixed"]).all()
