"""What a task says that it measures on: the same for the same data, another for any other.

Full-precision values are shared by its digest, so that a file which changes under its path must
change it too.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from experiment.full_precision import digest_of
from tasks.language.corpora import TextFiles
from tasks.language.protocols import Protocol
from tests.tasks.language import test_squad as squad
from tests.tasks.language import test_webnlg as webnlg
from tests.tasks.language import test_zero_shot as zero_shot
from tests.tasks.language.test_classification import TINY_BERT, glue
from tests.tasks.language.test_perplexity import modeling, tiny_model
from tests.tasks.vision import test_imagenet as imagenet

root = imagenet.root
questions = pytest.fixture(name="questions")(squad.folder.__wrapped__)
entries = pytest.fixture(name="entries")(webnlg.folder.__wrapped__)
items = pytest.fixture(name="items")(zero_shot.folder.__wrapped__)


def digest(task):
    return digest_of(task.evaluation_data())


def test_an_image_that_is_replaced_under_its_name_is_noticed(root):
    path = sorted((root / "val").rglob("*.JPEG"))[0]
    before = digest(imagenet.imagenet(root))
    assert digest(imagenet.imagenet(root)) == before
    stat, data = path.stat(), path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # of the same size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # and time
    assert digest(imagenet.imagenet(root)) != before


def test_a_copy_of_the_images_is_the_same_data(root, tmp_path):
    copied = tmp_path / "elsewhere"
    shutil.copytree(root, copied)
    for path in copied.rglob("*.JPEG"):
        os.utime(path, (1, 1))
    assert digest(imagenet.imagenet(copied)) == digest(imagenet.imagenet(root))


def test_a_train_image_has_no_part_in_it(root):
    before = digest(imagenet.imagenet(root))
    sorted((root / "train").rglob("*.JPEG"))[0].unlink()
    assert digest(imagenet.imagenet(root)) == before


def text(folder: Path, cache_dir, words):
    (folder / "text.txt").write_text("".join(words))
    task = modeling(
        cache_dir,
        corpus=TextFiles(str(folder / "text.txt")),
        protocol=Protocol("file", "test", 16, 2),
    )
    task.load(tiny_model(), None)
    return task


def test_text_under_the_same_path(tmp_path, cache_dir):
    words = [f"line {i} of the text\n" for i in range(2000)]
    before = digest(text(tmp_path, cache_dir, words))
    assert digest(text(tmp_path, cache_dir, words)) == before
    assert digest(text(tmp_path, cache_dir, words[::-1])) != before


def test_another_tokenizer_of_the_same_weights(cache_dir):
    task = modeling(cache_dir)
    task.load(tiny_model(), None)
    before = digest(task)
    again = modeling(cache_dir)
    again.load(tiny_model(), None)
    assert digest(again) == before
    again.tokenizer.add_tokens(["never in a text"])
    assert digest(again) != before


def test_glue_files(tmp_path, cache_dir):
    folder = tmp_path / "RTE"
    folder.mkdir()

    def found(sentence):
        line = f"0\tA b\t{sentence}\tentailment\n"
        for name in ("train.tsv", "dev.tsv"):
            (folder / name).write_text("index\tsentence1\tsentence2\tlabel\n" + line)
        task = glue("rte", tmp_path, cache_dir)
        task.fresh(TINY_BERT, None, 0)
        return digest(task)

    assert found("C d") == found("C d")
    assert found("C d") != found("C e")


def test_questions(questions, cache_dir):
    before = digest(squad.opened(cache_dir, questions))
    assert digest(squad.opened(cache_dir, questions)) == before
    squad.write(questions, squad.ITEMS[::-1])  # training
    assert digest(squad.opened(cache_dir, questions)) == before
    squad.write(questions, squad.ITEMS[::-1], "dev")
    assert digest(squad.opened(cache_dir, questions)) != before


def test_triples_and_what_counts_as_seen(entries, cache_dir):
    def found():
        return digest(webnlg.opened(cache_dir, entries)[0])

    before = found()
    assert found() == before
    train = entries / "train/1triples/a.xml"
    kept = train.read_text()
    train.write_text(webnlg.xml([webnlg.UNSEEN]))  # its category is now seen in training
    assert found() != before
    train.write_text(kept)
    test = entries / "test/testdata_with_lex.xml"
    test.write_text(test.read_text().replace("in most cups", "in all cups"))
    assert found() != before


def test_items_of_the_harness(items, cache_dir):
    def found(**changes):
        return digest(zero_shot.loaded(items, cache_dir, **changes)[0])

    before, few = found(), found(num_fewshot=1)
    assert found() == before
    train = items / "train.jsonl"
    train.write_text("\n".join(train.read_text().splitlines()[::-1]))
    assert found() == before
    assert found(num_fewshot=1) != few  # where they are shown
    test = items / "test.jsonl"
    test.write_text("\n".join(test.read_text().splitlines()[::-1]))
    assert found() != before
