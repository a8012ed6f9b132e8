"""GLUE's local files that can't be used: each is one line with the file's name and the line."""

from __future__ import annotations

import math
import re

import pytest
import torch

from tasks.language import glue_data
from tasks.language.classification import METRICS
from tests.tasks.language.test_classification import glue

pytest.importorskip("transformers", reason="the extra language is not installed")
STSB = "sentence1\tsentence2\tscore\n"


@pytest.fixture
def refused(tmp_path, cache_dir):
    """Return a function that reads bytes as a subset's dev.tsv and returns (its path, message)."""

    def call(subset, data):
        file = tmp_path / "dev.tsv"
        file.write_bytes(data if isinstance(data, bytes) else data.encode())
        with pytest.raises(ValueError, match=r"dev\.tsv") as error:
            glue(subset, tmp_path, cache_dir)._data.examples("validation")
        assert "\n" not in str(error.value)
        return file, str(error.value)

    return call


@pytest.mark.parametrize("label", ["nan", "inf", "-inf", "many"])
def test_a_score_that_is_no_number_is_refused(refused, label):
    file, message = refused("stsb", f"{STSB}a b\tc d\t2.5\na\tb\t{label}\n")
    assert message == f"{file}, line 3: {label!r} is no label of stsb"


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_a_correlation_is_0_with_a_constant_alone(name):
    scores = torch.tensor([1.0, 2.0, 4.0])
    assert METRICS[name](scores, torch.ones(3)) == METRICS[name](torch.ones(3), scores) == 0
    assert math.isnan(METRICS[name](scores, torch.tensor([1.0, math.nan, 4.0])))


SST2 = "sentence\tlabel\n"


@pytest.mark.parametrize(
    ("subset", "data", "line", "told"),
    [("sst2", f"{SST2}good\t1\n{'a' * 140_000}\t1\n", ", line 3", "field larger than field limit"),
     ("sst2", SST2.encode() + b"caf\xe9 bad\t1\n", "", "is not UTF-8 text (line 2)"),
     ("sst2", SST2, "", "no examples in it"),
     ("sst2", f"{SST2}broken\n", "", "no examples in it"),
     ("cola", "", "", "no examples in it")],
)  # fmt: skip
def test_a_file_that_can_not_be_read_is_named(refused, subset, data, line, told):
    file, message = refused(subset, data)
    assert message.startswith(f"{file}{line}")
    assert told in message


def test_a_split_without_labels_has_no_accuracy(monkeypatch, cache_dir):
    """The hub gives -1 for each of a test split's."""
    task = glue("sst2", "null", cache_dir)
    rows = [{"sentence": "fine", "label": 1}, {"sentence": "bad", "label": -1}]
    monkeypatch.setattr(glue_data, "load_hub", lambda *_: rows[:1])
    assert task._data.examples("validation") == [(("fine",), 1)]
    monkeypatch.setattr(glue_data, "load_hub", lambda *_: rows)
    with pytest.raises(ValueError, match="nyu-mll/glue's sst2 has no labels; give another split"):
        task._data.examples("validation")


@pytest.mark.parametrize("split", ["dev_mismatched", "test"])
def test_a_split_that_the_task_does_not_know_is_refused(split, cache_dir):
    told = rf"task.splits: {split} is none of train, .*validation_matched, validation_mismatched"
    with pytest.raises(ValueError, match=told):
        glue("mnli", "null", cache_dir, f"task.splits._mm={split}")


def sliced(tmp_path, cache_dir, split):
    lines = [f"{i} words\t{i % 2}\n" for i in range(10)]
    (tmp_path / "dev.tsv").write_text(SST2 + "".join(lines))
    task = glue("sst2", tmp_path, cache_dir, f"+task.splits._part='{split}'")
    _, (_, *examples) = task.texts()
    return [int(example.texts[0].split()[0]) for example in examples]


@pytest.mark.parametrize(
    ("part", "expected"),
    [("[:4]", range(4)), ("[7:]", range(7, 10)), ("[2:5]", range(2, 5)), ("[-3:]", range(7, 10)),
     ("[:-8]", range(2)), ("[:10]", range(10)), ("[:]", range(10)), ("", range(10))],
)  # fmt: skip
def test_a_part_of_a_local_split_is_that_of_the_hub(tmp_path, cache_dir, part, expected):
    assert sliced(tmp_path, cache_dir, f"validation{part}") == list(expected)
    datasets = pytest.importorskip("datasets")
    if part:
        (there,) = datasets.ReadInstruction.from_spec(f"validation{part}").to_absolute(
            {"validation": 10}
        )
        assert range(there.from_ or 0, 10 if there.to is None else there.to) == expected


@pytest.mark.parametrize("part", ["[:10%]", "[5]", "[a:b]", "[:5]+train", "[:5"])
def test_a_part_that_no_file_has_is_refused_before_the_network_is_loaded(cache_dir, part):
    told = (
        rf"task.splits: validation{re.escape(part)} can't be cut from a file of data_dir=nowhere; "
        r"give validation, or a part of it by whole numbers such as validation\[:100\]"
    )
    with pytest.raises(ValueError, match=told):
        glue("sst2", "nowhere", cache_dir, f"+task.splits._part='validation{part}'")
    glue("sst2", "null", cache_dir, f"+task.splits._part='validation{part}'")  # the hub's to say


@pytest.mark.parametrize("part", ["[:11]", "[-11:]", "[6:6]", "[8:2]"])
def test_a_part_beyond_the_file_or_an_empty_one_is_refused(tmp_path, cache_dir, part):
    told = rf"task.splits: .*dev.tsv has 10 examples, no validation{re.escape(part)} of them"
    with pytest.raises(ValueError, match=told):
        sliced(tmp_path, cache_dir, f"validation{part}")
