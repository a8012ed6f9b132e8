"""Calibration sequences: a text's own have the special tokens of its evaluation and fine-tuning."""

from __future__ import annotations

import pytest

from experiment.build import build
from tasks.language.calibration_data import Documents, Stream
from tasks.language.corpora import C4
from tasks.language.perplexity import LanguageModeling
from tasks.language.protocols import Protocol
from tests.experiment.test_configs import composed
from tests.tasks.language.test_perplexity import Letters, Rows

ROWS = ["ab", "cd"] * 6
A, B, C, D, BREAK, START = ord("a"), ord("b"), ord("c"), ord("d"), ord("\n"), 1
STREAMS = {
    "run_clm": [START, A, B, START, C, D] * 6,  # each row has its own
    "gptq": [START] + [A, B, BREAK, BREAK, C, D, BREAK, BREAK] * 6,  # the text has one
    "file": [A, B, C, D] * 6,
}


@pytest.mark.parametrize("protocol", STREAMS)
def test_a_stream_has_the_protocols_special_tokens(protocol):
    stream = STREAMS[protocol]
    windows = {tuple(stream[i : i + 4]) for i in range(0, len(stream) - 3, 4)}
    count = len(stream) // 4 if protocol != "gptq" else (len(stream) - 2) // 4
    found = Stream(Rows(ROWS), protocol).sequences(Letters(), 4, count, seed=3)
    assert found.shape == (count, 4)
    assert {tuple(window) for window in found.tolist()} <= windows
    # All of them, in any order, are the whole stream: no token was left out or put in.
    assert sorted(found.flatten().tolist()) == sorted(stream[: 4 * count])


@pytest.mark.parametrize("protocol", STREAMS)
def test_a_text_calibrates_on_windows_like_those_it_is_evaluated_on(protocol, tmp_path):
    task = LanguageModeling(
        "own", 1, Rows(ROWS), None, Protocol(protocol, "test", 4, None), 4, 2, False, None,
        0.02, str(tmp_path), str(tmp_path),
    )  # fmt: skip
    task._tokenizer = Letters()
    drawn = {tuple(w) for batch in task.calibration(5, 0) for w in batch["input_ids"].tolist()}
    evaluated = Protocol(protocol, "test", 4, None).windows(Rows(ROWS), Letters()).tolist()
    assert drawn <= {tuple(window) for window in evaluated}, "the stub's splits are one text"
    if protocol == "run_clm":
        tuned = {tuple(row["input_ids"].tolist()) for row in task.training_rows()}
        assert drawn <= tuned
        assert any(START in window for window in drawn)


def test_a_stream_that_is_too_short_says_what_to_lower():
    with pytest.raises(ValueError, match=r"num_samples=9: train has 6 sequences of 6 tokens"):
        Stream(Rows(ROWS), "run_clm").sequences(Letters(), 6, 9, 0)
    with pytest.raises(ValueError, match=r"num_samples=1: train has 0 sequences of 99 tokens"):
        Stream(Rows(ROWS), "run_clm").sequences(Letters(), 99, 1, 0)


def test_documents_are_windows_of_long_enough_documents():
    """GPTQ's way: a random window of a random document, tokenized by itself."""
    rows = ["short", "abcdefgh", "ABCDEFGH"]
    found = Documents(Rows(rows)).sequences(Letters(), 7, 2, seed=0)
    whole = [[START, *map(ord, row)] for row in rows[1:]]
    windows = [ids[i : i + 7] for ids in whole for i in range(3)]
    assert all(window in windows for window in found.tolist())
    assert {chr(window[-1]).isupper() for window in found} == {True, False}, "of two documents"
    with pytest.raises(ValueError, match="num_samples=3: train has 2 sequences of 7 tokens"):
        Documents(Rows(rows)).sequences(Letters(), 7, 3, 0)


def test_a_c4_that_is_not_at_hand_says_both_ways_out(monkeypatch):
    def absent(*_, **__):
        raise OSError("no network")

    datasets = pytest.importorskip("datasets", reason="the extra language is not installed")
    monkeypatch.setattr(datasets, "load_dataset", absent)
    files = {split: [f"en/c4-{split}.gz"] for split in ("train", "validation")}
    with pytest.raises(
        ValueError, match=r"en/c4-train.gz .*calibration_dir=PATH.*; calibration=own"
    ):
        C4(None, files, 9).rows("train")
    with pytest.raises(ValueError, match=r"en/c4-validation.gz \(data_dir=PATH") as error:
        C4(None, files, 9).rows("validation")
    assert "calibration=own" not in str(error.value)


@pytest.mark.parametrize("protocol", ["gptq", "file"])
def test_c4s_own_train_shard_is_no_text_to_read_whole(protocol, monkeypatch):
    """model=smollm2_135m has calibration=own on every task: 356,317 documents in one string."""
    cfg = composed("model=smollm2_135m", "task=c4", f"protocol={protocol}")
    assert cfg.calibration is None
    monkeypatch.setattr(C4, "rows", lambda *_: pytest.fail("it is read"))
    task = build(cfg.task)
    with pytest.raises(ValueError, match=rf"calibration=own under protocol={protocol} .*; give "
                       "calibration=c4, which draws"):  # fmt: skip
        task.calibration(128, 0)
    chosen = composed("model=smollm2_135m", "task=c4", "calibration=c4")
    assert isinstance(build(chosen.calibration), Documents)


def test_under_run_clm_c4s_documents_are_tokenized_one_by_one(monkeypatch):
    monkeypatch.setattr(C4, "rows", lambda *_: ROWS)
    found = Stream(C4(None, {}, 9), "run_clm").sequences(Letters(), 4, 3, 0)
    assert found.shape == (3, 4)
