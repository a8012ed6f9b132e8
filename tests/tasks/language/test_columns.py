"""Columns of text for calibration, read from local copies as `datasets` reads them."""

from __future__ import annotations

import csv
import gzip
import json

import pytest
import torch

from results.records.store import Store
from tasks.language.calibration_data import Openings
from tasks.language.columns import Column
from tests.experiment.test_configs import composed
from tests.tasks.language.test_calibration_data import START
from tests.tasks.language.test_perplexity import Letters, Rows

datasets = pytest.importorskip("datasets", reason="the extra language is not installed")
TEXTS = ["first\ndocument", 'with "quotes", a comma', "third"]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def column(local, name="text"):
    return Column("ORG/NAME", None, None, "train", name, str(local))


def write(path):
    """Write TEXTS to path as its name says."""
    rows = [{"text": text, "number": i} for i, text in enumerate(TEXTS)]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".jsonl":
        path.write_text(lines)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "number"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        datasets.Dataset.from_list(rows).to_parquet(path)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet"])
def test_every_kind_of_file_gives_its_rows(tmp_path, name):
    assert column(write(tmp_path / name)).rows("train") == TEXTS


def test_a_folder_gives_the_rows_of_its_files_in_order_of_their_names(tmp_path):
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    write(folder / "b.jsonl")
    write(folder / "sub" / "c.jsonl")
    (folder / "a.jsonl").write_text('{"text": "zeroth", "number": 7}\n')
    (folder / "README.md").write_text("no data")
    assert column(folder).rows("train") == ["zeroth", *TEXTS, *TEXTS]


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (["a.jsonl"], "words", r"calibration.corpus.column=words: calibration_dir=.* has text, "),
        (["a.jsonl"], "number", r"column=number: row 0 of .* holds int, not text; name a column"),
        (["a.jsonl", "b.csv"], "text", r"has json and csv; give a file, or a folder .*, one kind"),
        ([], "text", r"has none of these; give a file, or a folder of files, that end in .jsonl"),
    ],
    ids=["no such column", "no text", "two kinds", "no files"],
)
def test_what_can_not_be_read_is_one_line(tmp_path, names, given, message):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in names:
        write(folder / name)
    with pytest.raises(ValueError, match=message) as error:
        column(folder, given).rows("train")
    assert "\n" not in str(error.value)


def test_a_damaged_file_is_one_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "whole"}\n{"text": ')
    with pytest.raises(ValueError, match="can't be read as json: ") as error:
        column(path).rows("train")
    assert "\n" not in str(error.value)


def test_a_data_set_that_is_not_at_hand_says_the_ways_out(monkeypatch):
    seen = {}

    def absent(*args, **kwargs):
        seen.update(kwargs, args=args)
        raise OSError("no network\nfor ever")

    monkeypatch.setattr(datasets, "load_dataset", absent)
    with pytest.raises(ValueError, match=r"ORG/NAME can't be loaded: no network; .*calibration_d"):
        Column("ORG/NAME", "en", "abc", "train", "text", None).rows("train")
    assert seen == {
        "args": ("ORG/NAME", "en"), "split": "train", "revision": "abc", "trust_remote_code": False,
    }  # fmt: skip


def test_openings_are_the_first_tokens_of_different_long_enough_documents():
    rows = ["short", *(f"{chr(ord('a') + i)}23456789" for i in range(5))]
    found = Openings(Rows(rows)).sequences(Letters(), 7, 5, seed=0)
    whole = {tuple([START, *map(ord, row)][:7]) for row in rows[1:]}
    assert {tuple(window) for window in found.tolist()} == whole
    other = Openings(Rows(rows)).sequences(Letters(), 7, 5, seed=1)
    assert not torch.equal(found, other)
    with pytest.raises(ValueError, match="num_samples=6: train has 5 sequences of 7 tokens"):
        Openings(Rows(rows)).sequences(Letters(), 7, 6, 0)


@pytest.mark.parametrize("name", ["pile_10k", "redpajama", "hub"])
def test_a_run_calibrates_on_a_local_copy_and_is_known_by_what_it_holds(
    cli, results_dir, tmp_path, name
):
    path = tmp_path / "texts.jsonl"
    words = " ".join(f"word{i}" for i in range(200))
    for text in (words, words.upper()):
        path.write_text("".join(f"{json.dumps({'text': f'{i} {text}'})}\n" for i in range(8)))
        outcome = cli(
            "model=tiny_llama", "quant=rtn", "bits=4", "num_samples=4", "task.seq_len=32",
            "protocol.max_windows=2", f"calibration={name}", f"calibration_dir={path}",
            *(["calibration.corpus.path=any"] if name == "hub" else []),
        )  # fmt: skip
        assert outcome.status == 0, outcome.err
    first, second = Store(results_dir).load()
    assert first.run_id != second.run_id
    assert first.settings["calibration"]["corpus"]["local"].startswith("sha256:")


def test_a_hub_without_a_path_says_what_to_give(cli):
    outcome = cli("model=tiny_llama", "quant=rtn", "calibration=hub")
    assert outcome.status != 0
    assert "calibration.corpus.path" in outcome.err.splitlines()[-1]


def test_presets_name_what_the_papers_draw_from():
    cfg = composed("model=tiny_llama", "calibration=pile_10k").calibration
    assert (cfg.corpus.path, cfg._target_.rpartition(".")[2]) == ("NeelNanda/pile-10k", "Openings")
