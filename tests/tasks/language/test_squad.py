"""SQuAD: windows, spans chosen by logits, and the published scores."""

from __future__ import annotations

import inspect
import itertools
import json

import pytest
import torch
from omegaconf import OmegaConf

from flexround.models.language import LanguageModel
from flexround.models.language_adapter import LanguageAdapter
from tasks.language.squad import Squad
from tasks.language.squad_answers import best_span, exact_match, f1, locate, normalise, scores
from tests.experiment.test_configs import composed

pytest.importorskip("transformers", reason="the extra language is not installed")

BERT = LanguageModel(name="tiny_bert", source="tiny:bert", kind="encoder", leave=[])

# (question, context, answers): the first answer stands at its first occurrence.
FILLER = "Nothing happens in this part of the text, it only takes room for the window. "
ITEMS = [
    ("Who wrote it?", "The book was written by Ada Lovelace in 1843.", ["Ada Lovelace"]),
    ("When?", "The book was written by Ada Lovelace in 1843.", ["in 1843", "1843"]),
    ("Who came late?", FILLER * 6 + "At last Grace Hopper came.", ["Grace Hopper"]),
    ("Where is it?", f"It lies in Paris, France. {FILLER * 5}", ["Paris"]),
]


def write(folder, items, split="train"):
    """Write items in SQuAD's published layout."""
    paragraphs = [
        {
            "context": context,
            "qas": [
                {
                    "id": str(i),
                    "question": question,
                    "answers": [{"text": a, "answer_start": context.index(a)} for a in answers],
                }
            ],
        }
        for i, (question, context, answers) in enumerate(items)
    ]
    data = {"version": "1.1", "data": [{"title": "one", "paragraphs": paragraphs}]}
    (folder / f"{split}-v1.1.json").write_text(json.dumps(data), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, ITEMS)
    write(tmp_path, ITEMS, "dev")
    return tmp_path


FILES = {"train": ["train-v1.1.json"], "validation": ["dev-v1.1.json"]}


def squad(cache_dir, local, **changes):
    options = dict(
        name="squad", version=1, path="rajpurkar/squad", local=local and str(local), files=FILES,
        max_len=96,
        stride=32, n_best=20, max_answer=30, eval_batch_size=3, max_eval=None, expected=None,
        tolerance=0.1, cache_dir=str(cache_dir), checkpoints_dir=str(cache_dir / "made"),
    )  # fmt: skip
    return Squad(**(options | changes))


def opened(cache_dir, local, **changes):
    """Return the task with the tiny encoder's tokenizer."""
    task = squad(cache_dir, local, **changes)
    task.fresh(BERT, None, 0)
    return task


def test_normalisation_is_the_published_one():
    assert normalise("The  Quick, brown\nfox's an A.") == "quick brown foxs"
    assert normalise("Theatre and another") == "theatre and another", "articles are whole words"
    assert normalise("a-b") == "ab"


@pytest.mark.parametrize(
    ("answer", "gold", "expected_f1", "expected_exact"),
    [
        ("the Ada Lovelace!", "Ada Lovelace", 1.0, 1.0),
        ("Ada Lovelace in 1843", "ada lovelace", 2 * 0.5 * 1 / 1.5, 0.0),  # precision 1/2, recall 1
        ("cat cat dog", "cat", 2 * (1 / 3) * 1 / (4 / 3), 0.0),  # a word counts as often as in both
        ("cat", "dog", 0.0, 0.0),
        ("", "dog", 0.0, 0.0),
    ],
)
def test_scores_of_one_answer_by_hand(answer, gold, expected_f1, expected_exact):
    assert f1(answer, gold) == pytest.approx(expected_f1)
    assert exact_match(answer, gold) == expected_exact


def test_the_best_gold_answer_counts_and_means_are_over_questions():
    result = scores(["in 1843", "Rome"], [["the year", "1843"], ["Paris"]])
    assert result["f1"] == pytest.approx([2 / 3, 0.0])
    assert result["exact_match"] == [0.0, 0.0]


def test_each_questions_f1_is_kept_in_percent(cache_dir, folder, monkeypatch):
    """Of the main metric, which is their mean, as of exact match."""
    task = opened(cache_dir, folder)
    golds = [question.answers[0] for question in task.texts()]
    given = [golds[0], f"{golds[1]} besides", "nothing of it", golds[3]]
    monkeypatch.setattr(task, "_answers", lambda *_: given)
    words = len(normalise(golds[1]).split())
    metrics = task.evaluate(None)
    each = [100, 100 * 2 * words / (2 * words + 1), 0, 100]
    assert task.outcomes["f1"].tolist() == pytest.approx(each)
    assert task.outcomes["exact_match"].tolist() == [True, False, False, True]
    assert metrics["f1"] == pytest.approx(sum(each) / 4)
    assert metrics["exact_match"] == 50


SPANS = [None, None, (0, 3), (3, 7), (7, 9), None]  # [CLS] question, three of context, [SEP]


def logits(start, end):
    """Return [6, 2] with the given logits by token, 0 elsewhere."""
    values = torch.zeros(6, 2)
    for column, given in enumerate((start, end)):
        for token, value in given.items():
            values[token, column] = value
    return values


@pytest.mark.parametrize(
    ("start", "end", "n_best", "longest", "expected"),
    [
        ({3: 5}, {4: 4}, 6, 30, (9.0, (3, 9))),
        ({0: 9, 2: 1}, {0: 9, 3: 2}, 6, 30, (3.0, (0, 7))),  # [CLS] is no answer
        ({1: 9, 4: 1}, {5: 9, 4: 1}, 6, 30, (2.0, (7, 9))),  # nor question or [SEP]
        ({4: 5, 2: 4}, {2: 5, 3: 3}, 6, 30, (9.0, (0, 3))),  # an end does not lie before its start
        ({2: 5, 4: 3}, {4: 5}, 6, 2, (8.0, (7, 9))),  # three tokens are too long: start later
        ({0: 9, 2: 1}, {0: 9, 3: 2}, 1, 30, (-torch.inf, (0, 0))),  # only [CLS] is among the best
    ],
)
def test_the_best_span_of_hand_made_logits(start, end, n_best, longest, expected):
    assert best_span(logits(start, end), SPANS, n_best, longest) == expected


def test_an_answer_is_located_where_the_window_holds_all_of_it():
    assert locate(SPANS, (3, 9)) == (3, 4)
    assert locate(SPANS, (4, 6)) == (3, 3), "inside one token"
    assert locate(SPANS, (7, 12)) == (0, 0), "cut off at the end"
    later = [None, (20, 23), (23, 27), None]
    assert locate(later, (3, 9)) == (0, 0)
    assert locate(later, (18, 23)) == (0, 0), "cut off at the start"
    assert locate([None, None], (0, 1)) == (0, 0)


def test_training_rows_point_at_the_answer(cache_dir, folder):
    task = opened(cache_dir, folder)
    rows = task.training_rows()
    found = [
        task.tokenizer.decode(row["input_ids"][row["start_positions"] : row["end_positions"] + 1])
        for row in rows
        if row["end_positions"]
    ]
    wanted = [answers[0] for _, _, answers in ITEMS]
    assert {text.strip(" .,") for text in found} == set(wanted)
    assert len(rows) > len(ITEMS), "long contexts need more windows than one"
    for row in rows:
        assert len(row["input_ids"]) == len(row["attention_mask"]) <= 96
        assert set(row["token_type_ids"].tolist()) == {0, 1}


def test_windows_cover_the_context_and_share_stride_tokens(cache_dir, folder):
    task = opened(cache_dir, folder)
    context = ITEMS[2][1]
    windows = [w for w in task._windows(task._questions("train")) if w.question == 2]
    spans = [[span for span in window.spans if span] for window in windows]
    assert len(windows) >= 2
    assert (spans[0][0][0], spans[-1][-1][1]) == (0, len(context))
    for before, after in itertools.pairwise(spans):
        assert after[:32] == before[-32:]
    late = context.index("Grace")
    assert locate(windows[0].spans, (late, late + 12)) == (0, 0), "the answer is in a later window"


def test_the_collator_pads_to_the_longest(cache_dir, folder):
    task = opened(cache_dir, folder)
    rows = task.training_rows()[:3]
    batch = task.collator()(rows)
    longest = max(len(row["input_ids"]) for row in rows)
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        assert batch[name].shape == (3, longest)
        assert batch[name].dtype == torch.int64
    assert batch["attention_mask"].sum(1).tolist() == [len(row["input_ids"]) for row in rows]
    assert batch["start_positions"].tolist() == [row["start_positions"] for row in rows]


def test_the_network_takes_a_training_batch(cache_dir, folder):
    task = squad(cache_dir, folder)
    network = task.fresh(BERT, None, 0)
    assert torch.isfinite(network(**task.collator()(task.training_rows())).loss)


def test_calibration_is_first_windows_by_seed(cache_dir, folder):
    task = opened(cache_dir, folder)
    (batch,) = task.calibration(4, 0)
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask"}
    starts = task.tokenizer.batch_decode(batch["input_ids"])
    assert len(starts) == 4
    for question, context, _ in ITEMS:
        assert any(f"{question}</s>{context[:40]}" in text for text in starts)
    (again,) = task.calibration(4, 0)
    assert torch.equal(batch["input_ids"], again["input_ids"])
    orders = {tuple(task.calibration(4, s)[0]["input_ids"][:, 2].tolist()) for s in range(6)}
    assert len(orders) > 1
    with pytest.raises(ValueError, match="num_samples=5: the train split has 4"):
        task.calibration(5, 0)


class Pointing:
    """Logits that point at the answers of rows; at [CLS] where a window has none."""

    def __init__(self, rows):
        self.places = {
            tuple(row["input_ids"].tolist()): (row["start_positions"], row["end_positions"])
            for row in rows
        }
        self.batches = []

    def forward(self, batch):
        """Return [windows, tokens, 2]; padding has the highest logits of all."""
        self.batches.append(batch["input_ids"].shape)
        out = torch.zeros(*batch["input_ids"].shape, 2)
        for i, (ids, mask) in enumerate(
            zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
        ):
            for column, token in enumerate(self.places[tuple(ids[mask].tolist())]):
                out[i, token, column] = 10
            out[i, ~mask] = 100
        return out


def test_gold_logits_score_a_hundred(cache_dir, folder):
    task = opened(cache_dir, folder)
    adapter = Pointing(task.training_rows())
    assert task.evaluate(adapter) == {"f1": 100.0, "exact_match": 100.0}
    assert max(rows for rows, _ in adapter.batches) == 3
    lengths = [tokens for _, tokens in adapter.batches]
    assert lengths == sorted(lengths)


def test_max_eval_takes_the_first_questions(cache_dir, folder):
    task = opened(cache_dir, folder, max_eval=1)
    rows = task.training_rows()
    adapter = Pointing(rows)
    assert task.evaluate(adapter)["f1"] == 100.0
    assert adapter.batches == [(1, len(rows[0]["input_ids"]))]


def test_an_adapter_of_a_real_network_is_scored(cache_dir, folder):
    task = squad(cache_dir, folder)
    adapter = LanguageAdapter(task.fresh(BERT, None, 0), task.example(), torch.device("cpu"))
    metrics = task.evaluate(adapter)
    assert set(metrics) == {"f1", "exact_match"}
    assert 0 <= metrics["exact_match"] <= metrics["f1"] < 100
    right = task.outcomes["exact_match"].double()
    assert 100 * right.mean().item() == pytest.approx(metrics["exact_match"])
    assert task.outcomes["f1"].mean().item() == pytest.approx(metrics["f1"])


def test_full_precision_that_is_off_or_untrained_is_refused(cache_dir):
    squad(cache_dir, None, expected=88.0).check_full_precision({"f1": 88.05})
    with pytest.raises(ValueError, match=r"f1 87.000, expected are 88.000 \(tolerance 0.1\)"):
        squad(cache_dir, None, expected=88.0).check_full_precision({"f1": 87.0})
    with pytest.raises(ValueError, match="was never trained; give a fine-tuned checkpoint=PATH"):
        squad(cache_dir, None).check_full_precision({"f1": 4.9})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not SQuAD v1.1"),
        ("[]", "is not SQuAD v1.1"),
        ('{"data": []}', "no questions"),
        ('{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q"}]}]}]}', "answers"),
        ("[" * 100_000, "RecursionError"),
        (
            json.dumps(
                {
                    "data": [
                        {
                            "paragraphs": [
                                {
                                    "context": "c",
                                    "qas": [
                                        {
                                            "question": None,
                                            "answers": [{"text": "c", "answer_start": 0}],
                                        }
                                    ],
                                }
                            ]
                        }
                    ]
                }
            ),
            "no text",
        ),
        (
            json.dumps(
                {
                    "data": [
                        {
                            "paragraphs": [
                                {
                                    "context": "c",
                                    "qas": [
                                        {
                                            "question": "q",
                                            "answers": [{"text": "c", "answer_start": None}],
                                        }
                                    ],
                                }
                            ]
                        }
                    ]
                }
            ),
            "whole",
        ),
    ],
)
def test_a_file_of_something_else_is_refused(cache_dir, tmp_path, text, message):
    (tmp_path / "train-v1.1.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        opened(cache_dir, tmp_path).training_rows()
    assert "\n" not in str(error.value)


def test_unanswerable_questions_are_refused(cache_dir, tmp_path):
    write(tmp_path, [("Why?", "No reason.", [])])
    with pytest.raises(ValueError, match=r"no answer to 'Why\?', as in v2.0"):
        opened(cache_dir, tmp_path).training_rows()


def test_missing_data_says_the_way_out(cache_dir, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no train-v1.1.json there; give a folder with"):
        opened(cache_dir, tmp_path).training_rows()
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"rajpurkar/squad can't be loaded.*train-v1.1.json"):
        opened(cache_dir, None).training_rows()


def test_hub_rows_are_those_of_the_files(cache_dir, folder, monkeypatch):
    rows = [
        {
            "question": question,
            "context": context,
            "answers": {"text": answers, "answer_start": [context.index(a) for a in answers]},
        }
        for question, context, answers in ITEMS
    ]
    monkeypatch.setattr("tasks.language.squad_answers.load_hub", lambda *_: rows)
    assert squad(cache_dir, None)._questions("train") == squad(cache_dir, folder)._questions(
        "train"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 96}, r"task.stride=96: give 0 to below task.max_len \(96\)"),
        ({"n_best": 0}, "task.n_best=0: give a whole number of at least 1"),
        ({"max_eval": 0}, "task.max_eval=0: give a whole number of at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(cache_dir, changes, message):
    with pytest.raises(ValueError, match=message):
        squad(cache_dir, None, **changes)


def test_windows_longer_than_the_positions_are_refused(cache_dir):
    task = squad(cache_dir, None, max_len=384)
    with pytest.raises(ValueError, match=r"tiny:bert has 256 positions; lower task.max_len"):
        task.fresh(BERT, None, 0)


def test_a_question_that_leaves_no_room_is_refused(cache_dir, tmp_path):
    write(tmp_path, [("Why " * 80, "Because.", ["Because"])])
    with pytest.raises(ValueError, match=r"task.max_len=96: a question takes \d+ tokens"):
        opened(cache_dir, tmp_path).training_rows()


def test_the_configuration_has_every_parameter_and_the_papers_values():
    cfg = composed("model=bert_base", "task=squad")
    assert set(cfg.task) - {"_target_"} == set(inspect.signature(Squad).parameters)
    options = OmegaConf.to_container(cfg.task, resolve=False)
    assert [options[k] for k in ("max_len", "stride", "n_best", "max_answer")] == [384, 128, 20, 30]
    assert cfg.num_samples == 1024
