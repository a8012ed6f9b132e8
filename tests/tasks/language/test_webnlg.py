"""WebNLG: triples from XML, prompts, beam search and BLEU."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from flexround.models.language import LanguageModel
from flexround.models.language_adapter import LanguageAdapter
from tasks.language import tiny_models
from tasks.language.webnlg import WebNLG
from tasks.language.webnlg_data import Entry, read, scorer, scores, stack
from tests.experiment.test_configs import composed

transformers = pytest.importorskip("transformers", reason="the extra language is not installed")
needs_sacrebleu = pytest.mark.skipif(
    find_spec("sacrebleu") is None, reason="the extra language is not installed"
)

GPT2 = LanguageModel(name="tiny_gpt2", source="tiny:gpt2", kind="causal", leave=[])

# (category, modified triples, sentences with their comments)
TRAIN = [
    ("Airport", ["Aarhus_Airport | cityServed | Aarhus"],
     [("Aarhus airport serves Aarhus.", "good"), ("Aarhus is served by it.", "good"),
      ("The airport", "toFix")]),
    ("Food", ['Bacon | country | "United Kingdom"', "Bacon | mainIngredient | Pork"],
     [("Bacon is made of pork in the United Kingdom.", "good")]),
    ("Food", ["Tea | country | China"], [("Tea", "toFix")]),
]  # fmt: skip
SEEN = (
    "Food",
    ["Coffee | colour | Black"],
    [("Coffee is black in most cups.", "good"), ("The colour of coffee is black.", "good")],
)
UNSEEN = (
    "Politician",
    ["Abdul | birthPlace | Rome", "Abdul | party | Greens"],
    [("Abdul of the Greens was born in Rome.", "good")],
)


def xml(entries, sentences=True):
    """Return a file in the challenge's layout."""
    parts = []
    for number, (category, triples, lexes) in enumerate(entries, 1):
        triples = [t.replace("&", "&amp;") for t in triples]
        original = "".join(f"<otriple>not | {i} | used</otriple>" for i, _ in enumerate(triples))
        modified = "".join(f"<mtriple>{triple}</mtriple>" for triple in triples)
        good = "".join(f'<lex comment="{c}" lid="Id1">{t}</lex>' for t, c in lexes)
        parts.append(
            f'<entry category="{category}" eid="Id{number}" size="{len(triples)}">'
            f"<originaltripleset>{original}</originaltripleset>"
            f"<modifiedtripleset>{modified}</modifiedtripleset>{good if sentences else ''}</entry>"
        )
    return f"<benchmark><entries>{''.join(parts)}</entries></benchmark>"


@pytest.fixture
def folder(tmp_path):
    for place in ("train/1triples", "train/2triples", "test"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "train/1triples/a.xml").write_text(xml([TRAIN[0], TRAIN[2]]))
    (tmp_path / "train/2triples/a.xml").write_text(xml([TRAIN[1]]))
    (tmp_path / "test/testdata_no_lex.xml").write_text(xml([SEEN, UNSEEN], sentences=False))
    (tmp_path / "test/testdata_unseen_with_lex.xml").write_text(xml([UNSEEN]))
    (tmp_path / "test/testdata_with_lex.xml").write_text(xml([SEEN, UNSEEN]))
    return tmp_path


def webnlg(cache_dir, local, **changes):
    options = dict(
        name="webnlg", version=1, local=local and str(local), max_len=256, beams=3,
        length_penalty=0.8, no_repeat_ngram_size=4, max_new_tokens=12, tokenize="13a",
        lowercase=True, eval_batch_size=2, max_eval=None, expected=None, tolerance=0.1,
        cache_dir=str(cache_dir), checkpoints_dir=str(cache_dir / "made"),
    )  # fmt: skip
    return WebNLG(**(options | changes))


def opened(cache_dir, local, **changes):
    """Return (task with the tiny model's tokenizer, adapter of the tiny model)."""
    task = webnlg(cache_dir, local, **changes)
    network = task.fresh(GPT2, None, 0)
    return task, LanguageAdapter(network, task.example(), torch.device("cpu"))


def test_train_entries_have_their_good_sentences(folder):
    airport, bacon = read(folder, "train")
    assert airport == Entry(
        "Airport",
        (("Aarhus_Airport", "cityServed", "Aarhus"),),
        ("Aarhus airport serves Aarhus.", "Aarhus is served by it."),
    )
    assert bacon.prompt == 'Bacon : country : "United Kingdom" | Bacon : mainIngredient : Pork'


def test_each_test_entry_is_there_once_with_all_its_references(folder):
    coffee, abdul = read(folder, "test")
    assert coffee.references == ("Coffee is black in most cups.", "The colour of coffee is black.")
    assert abdul.references == ("Abdul of the Greens was born in Rome.",)
    assert (coffee.category, abdul.category) == ("Food", "Politician")


def test_entities_of_xml_are_read(tmp_path):
    (tmp_path / "test").mkdir()
    entry = ("Food", ["Fish & chips | with | Peas"], [("With peas.", "good")])
    (tmp_path / "test/a.xml").write_text(xml([entry]))
    assert read(tmp_path, "test")[0].prompt == "Fish & chips : with : Peas"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no xml", "is not XML of the WebNLG 2017 challenge"),
        (xml([("Food", ["two | parts"], [])]), "'two | parts' is no triple"),
        (xml([("Food", [], [])]), "no mtriple in entry Id1"),
        (xml([SEEN]).replace("category=", "kind="), "is not XML of the WebNLG 2017 challenge"),
        ('<?xml version="1.0" encoding="none"?><benchmark/>', "is not XML of the WebNLG 2017"),
    ],
)
def test_a_file_of_something_else_is_refused(folder, text, message):
    (folder / "train/2triples/bad.xml").write_text(text)
    with pytest.raises(ValueError, match=r"bad.xml") as error:
        read(folder, "train")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_data_says_the_way_out(cache_dir, folder):
    with pytest.raises(ValueError, match=r"task=webnlg needs data_dir=PATH, the WebNLG 2017"):
        webnlg(cache_dir, None)
    task = webnlg(cache_dir, folder / "nowhere")
    with pytest.raises(ValueError, match=r"nowhere: no such folder; give the WebNLG 2017"):
        task.training_rows()
    with pytest.raises(ValueError, match=r"no XML file in dev/; give the WebNLG 2017"):
        read(folder, "dev")


def test_training_rows_are_prompt_end_sentence_end(cache_dir, folder):
    task, _ = opened(cache_dir, folder)
    tokens = task.tokenizer
    rows = task.training_rows()
    assert len(rows) == 3, "one for every good sentence"
    assert tokens.decode(rows[1]["input_ids"]) == (
        "Aarhus_Airport : cityServed : Aarhus</s> Aarhus is served by it.</s>"
    )
    for row in rows:
        ids, labels = row["input_ids"], row["labels"]
        prompt = ids.index(tokens.eos_token_id) + 1
        assert labels == [-100] * prompt + ids[prompt:]
        assert row["attention_mask"] == [1] * len(ids)
    assert tokens.decode([i for i in rows[2]["labels"] if i >= 0]) == (
        " Bacon is made of pork in the United Kingdom.</s>"
    )


def test_rows_longer_than_max_len_are_left_out_and_told(cache_dir, folder, caplog):
    task, _ = opened(cache_dir, folder)
    lengths = sorted(len(row["input_ids"]) for row in task.training_rows())
    task, _ = opened(cache_dir, folder, max_len=lengths[1])
    assert sorted(len(row["input_ids"]) for row in task.training_rows()) == lengths[:2]
    assert "train: left out 1 rows over max_len tokens" in caplog.text


def test_the_collator_pads_and_ignores_padding(cache_dir, folder):
    task, adapter = opened(cache_dir, folder)
    rows = task.training_rows()
    batch = task.collator()(rows)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    inside = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    assert torch.equal(batch["attention_mask"].bool(), inside)
    assert (batch["labels"][~inside] == -100).all()
    assert (batch["input_ids"][~inside] == task.tokenizer.pad_token_id).all()
    # The loss of a padded batch is that over all of its sentences' tokens.
    loss, total, count = adapter.model(**batch).loss, 0.0, 0
    for row in rows:
        known = sum(label >= 0 for label in row["labels"])
        alone = adapter.model(**{name: torch.tensor([v]) for name, v in row.items()}).loss
        total, count = total + alone.item() * known, count + known
    assert loss.item() == pytest.approx(total / count, rel=1e-4)


def test_a_tokenizer_without_padding_pads_with_the_end(cache_dir, folder):
    task, _ = opened(cache_dir, folder)
    task.tokenizer.pad_token = None
    batch = task.collator()(task.training_rows())
    padding = batch["input_ids"][batch["attention_mask"] == 0]
    assert len(padding)
    assert (padding == task.tokenizer.eos_token_id).all()


def test_stack_pads_on_either_side():
    rows = [{"input_ids": [5, 6], "attention_mask": [1, 1]},
            {"input_ids": [7], "attention_mask": [1]}]  # fmt: skip
    assert stack(rows, 9, "left")["input_ids"].tolist() == [[5, 6], [9, 7]]
    assert stack(rows, 9, "left")["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert stack(rows, 9, "right")["input_ids"].tolist() == [[5, 6], [7, 9]]


def test_calibration_is_whole_training_sequences_by_seed(cache_dir, folder):
    task, _ = opened(cache_dir, folder)
    (batch,) = task.calibration(3, 0)
    assert set(batch) == {"input_ids", "attention_mask"}
    drawn = {
        tuple(ids[mask.bool()].tolist())
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    }
    assert drawn == {tuple(row["input_ids"]) for row in task.training_rows()}
    assert torch.equal(task.calibration(3, 0)[0]["input_ids"], batch["input_ids"])
    with pytest.raises(ValueError, match="num_samples=4: the train split has 3"):
        task.calibration(4, 0)


def test_left_padding_changes_no_sentence(cache_dir, folder):
    network, _ = tiny_models.load("tiny:gpt2", cache_dir, transformers.AutoModelForCausalLM)
    task, _ = opened(cache_dir, folder)
    adapter = LanguageAdapter(network, task.example(), torch.device("cpu"))
    prompts = task._prompts(["The function", "A class is an object that", "x"])
    assert len({len(prompt) for prompt in prompts}) == 3
    together = task._generate(adapter, prompts)
    assert together == [task._generate(adapter, [prompt])[0] for prompt in prompts]
    assert all(together)
    # Alone and without a mask, by transformers' own search.
    out = network.generate(
        torch.tensor([prompts[2]]), num_beams=3, length_penalty=0.8, max_new_tokens=12,
        do_sample=False, eos_token_id=task.tokenizer.eos_token_id, pad_token_id=2,
    )  # fmt: skip
    alone = task.tokenizer.decode(out[0, len(prompts[2]) :], skip_special_tokens=True)
    assert webnlg_of(task, no_repeat_ngram_size=0)._generate(adapter, [prompts[2]]) == [
        alone.strip()
    ]


def webnlg_of(task, **changes):
    """Return another task with the tokenizer of task."""
    other = webnlg(task._cache_dir, task._folder, **changes)
    other._tokenizer = task.tokenizer
    return other


def test_repeats_count_in_the_sentence_only(cache_dir, folder):
    task = webnlg(cache_dir, folder, no_repeat_ngram_size=3)
    (ban,) = task._no_repeats(3)
    zeros = torch.zeros(1, 10)
    copied = ban(torch.tensor([[5, 6, 7, 5, 6]]), zeros)
    assert torch.equal(copied, zeros), "5 6 7 stands in the prompt only"
    again = ban(torch.tensor([[1, 2, 3, 5, 6, 7, 5, 6]]), zeros)
    assert again[0].isinf().nonzero().flatten().tolist() == [7]
    assert webnlg(cache_dir, folder, no_repeat_ngram_size=0)._no_repeats(3) == []


class Perfect:
    """A model whose search returns a reference, in capitals, for every prompt."""

    def __init__(self, task, folder):
        self.tokens, self.asked, self.devices = task.tokenizer, [], []
        self.answers = {
            entry.prompt: entry.references[-1].upper() for entry in read(folder, "test")
        }

    def to(self, device):
        """Note the device."""
        self.devices.append(device)
        return self

    def generate(self, input_ids, attention_mask, **options):
        """Return [rows, prompt and sentence]."""
        self.asked.append(options)
        made = []
        for ids, mask in zip(input_ids, attention_mask.bool(), strict=True):
            prompt = self.tokens.decode(ids[mask][:-1])
            sentence = self.tokens(f" {self.answers[prompt]}", add_special_tokens=False)
            made.append(torch.tensor([*sentence["input_ids"], self.tokens.eos_token_id]))
        ends = torch.nn.utils.rnn.pad_sequence(made, True, self.tokens.pad_token_id)
        return torch.cat([input_ids, ends], dim=1)


def perfect(cache_dir, folder, **changes):
    task, _ = opened(cache_dir, folder, **changes)
    model = Perfect(task, folder)
    return task, SimpleNamespace(model=model, device=torch.device("cpu"))


@needs_sacrebleu
def test_perfect_sentences_score_a_hundred(cache_dir, folder):
    task, adapter = perfect(cache_dir, folder)
    found = task.evaluate(adapter)
    assert set(found) == {"bleu_all", "bleu_seen", "bleu_unseen"}
    assert found == pytest.approx(dict.fromkeys(found, 100.0))
    (asked,) = adapter.model.asked
    assert (asked["num_beams"], asked["length_penalty"], asked["max_new_tokens"]) == (3, 0.8, 12)
    assert (asked["use_cache"], asked["do_sample"]) == (True, False)
    assert adapter.model.devices == [adapter.device]


@needs_sacrebleu
def test_case_counts_unless_lowercase(cache_dir, folder):
    task, adapter = perfect(cache_dir, folder, lowercase=False)
    assert task.evaluate(adapter)["bleu_all"] < 20


@needs_sacrebleu
def test_max_eval_takes_the_first_entries(cache_dir, folder):
    task, adapter = perfect(cache_dir, folder, max_eval=1)
    assert set(task.evaluate(adapter)) == {"bleu_all", "bleu_seen"}, "no unseen entry is evaluated"


@needs_sacrebleu
def test_a_real_model_is_scored(cache_dir, folder):
    task, adapter = opened(cache_dir, folder)
    assert 0 <= task.evaluate(adapter)["bleu_all"] < 50
    assert adapter.model.config.use_cache is False


@needs_sacrebleu
def test_bleu_by_hand_with_more_references_for_some():
    entries = [
        Entry("A", (), ("one two three four five six", "a b c d e f")),
        Entry("B", (), ("k l m n",)),
    ]
    metric = scorer("none", True)
    found = scores(metric, ["a b c d e g", "k l m n"], entries, {"A"})
    # 1- to 4-grams of "a b c d e g" in its second reference: 5/6, 4/5, 3/4, 2/3.
    assert found["bleu_seen"] == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)
    assert found["bleu_unseen"] == pytest.approx(100)
    # Of both together 9 of 10, 7 of 8, 5 of 6 and 3 of 4; BLEU counts over the corpus.
    both = (9 / 10) * (7 / 8) * (5 / 6) * (3 / 4)
    assert found["bleu_all"] == pytest.approx(100 * both**0.25)


@needs_sacrebleu
def test_an_unknown_tokenization_is_refused():
    with pytest.raises(ValueError, match=r"task.tokenize=14a: give one of .*13a"):
        scorer("14a", True)


@needs_sacrebleu
def test_a_prompt_that_leaves_no_room_is_refused(cache_dir, folder):
    task, adapter = perfect(cache_dir, folder, max_new_tokens=250)
    with pytest.raises(ValueError, match=r"task.max_new_tokens=250: the longest prompt has \d+"):
        task.evaluate(adapter)


@pytest.mark.parametrize("option", ["beams", "max_new_tokens", "max_eval"])
def test_numbers_out_of_range_are_refused(cache_dir, folder, option):
    with pytest.raises(ValueError, match=f"task.{option}=0: give a whole number of at least 1"):
        webnlg(cache_dir, folder, **{option: 0})


def test_a_network_that_does_not_fit_is_refused(cache_dir, folder):
    with pytest.raises(ValueError, match=r"tiny:gpt2 has 256 positions; lower task.max_len"):
        opened(cache_dir, folder, max_len=512)
    task, adapter = opened(cache_dir, folder)
    task.check_network(adapter.model, "tiny:gpt2")
    task.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="needs a tokenizer with an end token"):
        task.check_network(adapter.model, "tiny:gpt2")


def test_full_precision_that_is_off_is_refused(cache_dir, folder):
    webnlg(cache_dir, folder).check_full_precision({"bleu_all": 1.0})
    task = webnlg(cache_dir, folder, expected=55.43)
    task.check_full_precision({"bleu_all": 55.5})
    with pytest.raises(ValueError, match=r"bleu_all 54.000, expected are 55.430 \(tolerance 0.1\)"):
        task.check_full_precision({"bleu_all": 54.0})


def test_the_configuration_has_every_parameter_and_the_examples_values():
    cfg = composed("model=gpt2_medium", "task=webnlg")
    assert set(cfg.task) - {"_target_"} == set(inspect.signature(WebNLG).parameters)
    search = ("beams", "length_penalty", "no_repeat_ngram_size", "tokenize", "lowercase")
    assert [cfg.task[k] for k in search] == [10, 0.8, 4, "13a", True]
    assert cfg.num_samples == 128
