"""Published numbers: counts and cells typed from the papers, not from the files under test."""

from __future__ import annotations

from pathlib import Path

import pytest

from results.tables.published_numbers import COLUMNS, Cell, others, published, read

CONF = Path(__file__).parents[3] / "conf"

# Rows x columns of each table as printed; ImageNet cells are top-1/top-5, MNLI matched/mismatched,
# QQP F1/accuracy, STS-B Pearson/Spearman.
COUNTS = {
    "table01": 6 * 3 * 2,  # fp, 3 methods, 2 ablations; 3 networks
    "table02": (1 + 3 * 3) * 3 * 2,  # fp, 3 methods at W4, W3, W2; 3 networks
    "table03": (1 + 2 * 4) * 3 * 2,  # fp, 2 methods under B and Q at W4A4, W3A3; 3 networks
    "table04": 3 * (2 + 2 + 1) * 5,  # fp, 2 methods; MNLI, QQP, MRPC; 5 models
    "table05": 2 * 3 * 6,  # 2 corpora; fp, 2 methods; 6 models
    "table06": 2 * 3 * 3,  # 2 models; fp, 2 methods; unseen, seen, all
    "table07": 3 * (7 + 1),  # fp, 2 methods; 7 tasks and WikiText2
    "table08": (1 + 3 * 3) * 3 * 2,  # as Table 2
    "table09": (1 + 2 * 4) * 3 * 2,  # as Table 3
    "table10": 3 * 2 * 2 * 2,  # fp, 2 methods; with and without equalization; 2 checkpoints
    "table11": (1 + 3 * 3) * 3 * 2,  # as Table 2
    "table12": 2 * 3,  # 2 models; fp, 2 methods
    "table13": 2 * 5,  # 2 models; rate, batch, epochs, length, stride
    "table14": 5 * 5,  # 5 models; rate, batch, epochs, length, weight decay
    "table15": 3 * (2 + 2 + 1 + 1 + 1 + 2 + 1 + 1) * 5,  # Table 4 with all 8 tasks
    "table16": 3 * (1 + 1 + 2) * 5,  # QNLI, SST-2, STS-B
    "table17": 2 * 6 * 2,  # 2 corpora; 6 models; rate, batch
    "table18": 2 * 6 * 2,  # as Table 17
    "table19": 3 * 3 * (7 + 1),  # 3 models; fp, 2 methods; 7 tasks and WikiText2
    "table20": 3 * 3 * 7,  # without WikiText2
    "table21": 3 * 3 * (7 + 1),  # as Table 19
    "table22": 3 * 3 * 7,  # as Table 20
    "table23": 2 * 3 * 3,  # 2 corpora; fp, 2 methods; 3 models
    "table24": 2 * (1 + 2 * 2) * 3,  # 2 corpora; fp, 2 methods at W4, W3; 3 models
    "figure07": 2 * 7,  # 2 methods; 2048 to 32 samples
}

# model task method setting bits metric value; _ is no setting, + joins its words.
SAMPLES = {
    "table01": """
        resnet18 imagenet flexround_fixed_s1 B W4A32 top1 70.09
        mobilenet_v2 imagenet flexround_fixed_s1 B W4A32 top1 69.47
        resnet50 imagenet flexround_no_s3_s4 B W4A32 top5 92.63
        mobilenet_v2 imagenet flexround_no_s3_s4 B W4A32 top1 70.51
        mobilenet_v2 imagenet adaquant B W4A32 top1 15.17""",
    "table02": """
        resnet18 imagenet fp _ 32 top1 71.00
        resnet50 imagenet flexround B W2A32 top1 63.67
        mobilenet_v2 imagenet adaround B W2A32 top5 66.18
        resnet18 imagenet adaround B W3A32 top1 68.79""",
    "table03": """
        mobilenet_v2 imagenet flexround Q W3A3 top1 51.49
        mobilenet_v2 imagenet adaround B W3A3 top5 11.54
        resnet50 imagenet adaround Q W4A4 top1 74.90
        resnet18 imagenet flexround B W4A4 top5 88.83""",
    "table04": """
        bert_base glue/mnli fp _ 32 accuracy_mm 85.20
        gpt_neo_125m glue/qqp adaround Q W8A8 f1 72.97
        gpt_neo_2_7b glue/mrpc flexround Q W8A8 accuracy 86.76
        bert_large glue/qqp flexround Q W8A8 accuracy 91.31""",
    "table05": """
        gpt_neo_125m wikitext2 adaround Q+finetuned W8A8 perplexity 30.52
        opt_2_7b wikitext2 fp finetuned 32 perplexity 10.27
        opt_125m ptb flexround Q+finetuned W8A8 perplexity 17.68
        gpt_neo_2_7b ptb adaround Q+finetuned W8A8 perplexity 19.80""",
    "table06": """
        gpt2_medium webnlg fp lora 32 bleu_all 55.43
        gpt2_medium webnlg adaround Q+lora W8A8 bleu_unseen 45.70
        gpt2_large webnlg flexround Q+lora W8A8 bleu_seen 64.47""",
    "table07": """
        llama_33b zero_shot fp _ 16 openbookqa 42.00
        llama_33b zero_shot adaround Q W8A8 winogrande 57.93
        llama_33b wikitext2 flexround Q W8A8 perplexity 6.82""",
    "table08": """
        resnet18 imagenet fp torchvision 32 top1 69.76
        mobilenet_v2 imagenet adaquant B+torchvision W4A32 top5 0.53
        resnet50 imagenet flexround B+torchvision W2A32 top1 70.57
        resnet18 imagenet adaquant B+torchvision W2A32 top5 4.10""",
    "table09": """
        mobilenet_v2 imagenet adaround B+torchvision W4A4 top1 28.46
        mobilenet_v2 imagenet flexround Q+torchvision W4A4 top5 84.18
        resnet50 imagenet adaround Q+torchvision W3A3 top1 71.80""",
    "table10": """
        mobilenet_v2 imagenet fp equalize+absorb_biases 32 top1 69.64
        mobilenet_v2 imagenet adaround B+equalize+absorb_biases W4A32 top5 0.67
        mobilenet_v2 imagenet adaround B+torchvision+equalize+absorb_biases W4A32 top1 70.03
        mobilenet_v2 imagenet flexround B+torchvision W4A32 top1 69.56""",
    "table11": """
        resnet18 imagenet adaquant_flexround B W4A32 top1 69.81
        resnet50 imagenet adaquant_flexround B W2A32 top5 85.81
        mobilenet_v2 imagenet adaquant_flexround B W3A32 top1 65.58""",
    "table12": """
        bert_base squad fp _ 32 f1 87.05
        bert_base squad flexround Q W8A8 f1 87.25
        bert_large squad adaround Q W8A8 f1 88.89""",
    "table13": """
        bert_base squad fp _ 32 recipe.lr 1e-4
        bert_large squad fp _ 32 recipe.epochs 4
        bert_base squad fp _ 32 task.stride 128""",
    "table14": """
        bert_base glue fp _ 32 recipe.lr 2e-5
        gpt_neo_2_7b glue fp _ 32 recipe.lr 1e-5
        gpt_neo_2_7b glue fp _ 32 recipe.batch_size 16
        gpt_neo_125m glue fp _ 32 recipe.weight_decay 0.01""",
    "table15": """
        bert_large glue/cola adaround Q W8A8 matthews 54.30
        gpt_neo_1_3b glue/stsb fp _ 32 spearman 88.90
        gpt_neo_2_7b glue/rte flexround Q W8A8 accuracy 81.23
        gpt_neo_125m glue/qnli flexround Q W8A8 accuracy 80.52
        bert_base glue/sst2 flexround Q W8A8 accuracy 92.43""",
    "table16": """
        gpt_neo_125m glue/qnli flexround Q+tuned_lr W8A8 accuracy 82.72
        bert_base glue/sst2 flexround Q+tuned_lr W8A8 accuracy 92.66
        gpt_neo_1_3b glue/stsb flexround Q+tuned_lr W8A8 pearson 89.20
        bert_large glue/qnli adaround Q W8A8 accuracy 92.24""",
    "table17": """
        gpt_neo_1_3b wikitext2 fp finetuned 32 recipe.lr 4e-6
        opt_1_3b ptb fp finetuned 32 recipe.lr 9e-6
        opt_125m wikitext2 fp finetuned 32 recipe.batch_size 8""",
    "table18": """
        gpt_neo_2_7b wikitext2 flexround Q+finetuned W8A8 recon.lr 4e-3
        opt_1_3b wikitext2 flexround Q+finetuned W8A8 recon.lr 7e-6
        opt_2_7b ptb flexround Q+finetuned W8A8 recon.batch_size 8""",
    "table19": """
        llama_7b wikitext2 fp _ 16 perplexity 8.90
        llama_7b zero_shot adaround Q W8A8 openbookqa 39.00
        llama_13b zero_shot flexround Q W8A8 winogrande 70.64
        llama_33b zero_shot flexround Q W8A8 arc_challenge 44.97""",
    "table20": """
        llama_7b zero_shot flexround Q+num_fewshot=5 W8A8 boolq 76.76
        llama_13b zero_shot fp num_fewshot=5 16 arc_easy 70.79
        llama_33b zero_shot adaround Q+num_fewshot=5 W8A8 boolq 68.38
        llama_33b zero_shot flexround Q+num_fewshot=5 W8A8 piqa 80.90""",
    "table21": """
        llama_7b zero_shot adaround B W4A16 winogrande 68.27
        llama_13b wikitext2 flexround B W4A16 perplexity 7.90
        llama_33b zero_shot flexround B W4A16 winogrande 72.61
        llama_13b zero_shot flexround B W4A16 hellaswag 75.52""",
    "table22": """
        llama_7b zero_shot adaround B+num_fewshot=5 W4A16 arc_easy 57.79
        llama_13b zero_shot flexround B+num_fewshot=5 W4A16 arc_challenge 48.04
        llama_33b zero_shot flexround B+num_fewshot=5 W4A16 boolq 86.64""",
    "table23": """
        llama_7b wikitext2 fp lora 16 perplexity 5.53
        llama_13b ptb adaround Q+lora W8A8 perplexity 9.23
        llama_33b wikitext2 flexround Q+lora W8A8 perplexity 4.32""",
    "table24": """
        llama_13b wikitext2 adaround B+lora W3A16 perplexity 6.20
        llama_7b ptb adaround B+lora W3A16 perplexity 10.16
        llama_33b ptb flexround B+lora W4A16 perplexity 7.25""",
    "figure07": """
        mobilenet_v2 imagenet flexround B+num_samples=32 W4A32 top1 68.46
        mobilenet_v2 imagenet adaround B+num_samples=2048 W4A32 top1 69.76
        mobilenet_v2 imagenet flexround B+num_samples=512 W4A32 top1 70.57""",
}

# Again rows x columns; fp once where a source repeats it.
OTHERS_COUNTS = {
    "arXiv 2004.10568": 4,  # fp, two numbers of the text, a time
    "arXiv 2210.17323 Table 1": (1 + 5 * 2) * 2,  # fp, 5 methods at W4, W3; 2 networks
    # OPT: 5 rows of 9 on WikiText2, 2 of 9 and 2 fp on C4, 2 on PTB; BLOOM: 3 rows of 6, a group;
    # OPT-175B: 2 groups, 4 LAMBADA, 3 at W2; BERT: fp, 2 x 2; 5 times
    "arXiv 2210.17323": 5 * 9 + 2 * 9 + 2 + 2 + 3 * 6 + 1 + 2 + 4 + 3 + 5 + 5,
    "gptq@2d65066 README.md": 4 * 5 + 1,  # 4 models; fp, RTN 4, GPTQ 4, 3, 3g128; 7.15
    "BRECQ@e455d62 README.md": 4,
    "QDrop@ef37616 README.md": 5 * 6,
    "QuantEase@e8c7d71 README.md": 4 * 3,
    "arXiv 2407.11534 Table 1": 2,  # all that a review has of it
    "auto-round@b9f3d00 docs/paper_acc.md": 4 + 4 * 4 * 6 + 4 * 4,  # fp; schemes; MMLU
    "auto-round@b9f3d00 docs/alg_202508.md": 2,
    "auto-round@b9f3d00 docs/full_range_sym.md": 3,
    "auto-round@b9f3d00 docs/step_by_step.md": 3 * 2 + 3,  # time and memory; times of recipes
}

OTHERS = {
    "arXiv 2210.17323 Table 1": """
        resnet18 imagenet adaround per_channel W4 top1 69.34
        resnet50 imagenet adaquant per_channel W3 top1 64.98
        resnet50 imagenet gptq per_channel W3 top1 74.87""",
    "arXiv 2210.17323": """
        opt_125m wikitext2 gptq per_channel W4 perplexity 31.12
        opt_1_3b wikitext2 rtn per_channel W3 perplexity 1.3e4
        opt_66b c4 gptq per_channel W3 perplexity 14.59
        bloom_7_1b wikitext2 gptq per_channel W3 perplexity 13.47
        opt_175b zero_shot gptq group_size=1024 W3 lambada 77.39""",
    "gptq@2d65066 README.md": """
        llama_7b wikitext2 gptq per_channel W4 perplexity 7.15
        llama_7b wikitext2 gptq per_channel+act_order+sequential W4 perplexity 6.09
        llama_33b wikitext2 rtn per_channel W4 perplexity 4.54""",
    "BRECQ@e455d62 README.md": """
        resnet18 imagenet brecq per_channel W2A4 top1 65.212
        mobilenet_v2 imagenet brecq per_channel W2 top1 59.488""",
    "QDrop@ef37616 README.md": """
        resnet18 imagenet fp _ 32 top1 71.06
        mobilenet_v2 imagenet qdrop _ W2A2 top1 11.95
        mnasnet_x2 imagenet qdrop _ W3A3 top1 64.05""",
    "QuantEase@e8c7d71 README.md": """
        opt_1_3b wikitext2 quantease per_channel W3 perplexity 21.30""",
    "arXiv 2407.11534 Table 1": """
        llama2_70b zero_shot lrq per_channel+kv_bits=8 W8A8 average 65.93
        llama2_70b zero_shot flexround per_channel+kv_bits=8 W8A8 average 65.86""",
    "auto-round@b9f3d00 docs/paper_acc.md": """
        llama2_7b zero_shot signround group_size=128 W2 average_11 48.64
        llama2_70b zero_shot awq per_channel W4 average_11 66.28
        mistral_7b zero_shot fp _ 16 average_11 63.30
        llama2_13b zero_shot rtn per_channel W4 mmlu 50.37""",
}


def lines(samples):
    return [(table, line) for table, text in samples.items() for line in text.split("\n") if line]


def find(cells, line):
    *names, value = line.split()
    names[3] = "" if names[3] == "_" else names[3].replace("+", " ")
    found = [c for c in cells if [c.model, c.task, c.method, c.setting, c.bits, c.metric] == names]
    assert len(found) == 1, line
    return found[0], value


def test_every_table_has_its_cells():
    assert {cell.table for cell in published()} == set(COUNTS)
    assert {table: len(published(table)) for table in COUNTS} == COUNTS


def test_every_source_has_its_cells():
    assert {source: len(others(source)) for source in OTHERS_COUNTS} == OTHERS_COUNTS
    assert len(others()) == sum(OTHERS_COUNTS.values())


@pytest.mark.parametrize("table", COUNTS)
def test_cells_are_as_printed(table):
    assert len(lines({table: SAMPLES[table]})) >= 3
    for _, line in lines({table: SAMPLES[table]}):
        cell, value = find(published(table), line)
        assert (cell.printed, cell.value) == (value, float(value))


@pytest.mark.parametrize("source", OTHERS)
def test_other_methods_cells_are_as_printed(source):
    for _, line in lines({source: OTHERS[source]}):
        cell, value = find(others(source), line)
        assert cell.printed == value


def results_of(*tables):
    return {
        (c.model, c.task, c.method, c.setting, c.bits, c.metric): c.printed
        for table in tables
        for c in published(table)
    }


def test_tables_that_repeat_numbers_agree():
    """Tables 1, 2, 3 and 11 share rows, as do 8 and 9, 19 and 21, 20 and 22, 23 and 24."""
    for group, shared in {
        ("table01", "table02"): 4 * 6,  # all but the ablations
        ("table02", "table03"): 6,  # fp
        ("table02", "table11"): (1 + 2 * 3) * 6,  # fp, AdaQuant, FlexRound
        ("table04", "table15"): COUNTS["table04"],
        ("table07", "table19"): COUNTS["table07"],
        ("table08", "table09"): 6,  # fp
        ("table08", "table10"): 3 * 2,  # MobileNetV2: fp and 2 methods
        ("table02", "table10"): 3 * 2,
        ("table15", "table16"): 2 * 4 * 5,  # fp and AdaRound
        ("table19", "table21"): 3 * 8,  # fp
        ("table20", "table22"): 3 * 7,  # fp
        ("table23", "table24"): 2 * 3,  # fp
    }.items():
        one, two = (results_of(table) for table in group)
        assert len(one.keys() & two.keys()) == shared, group
        assert all(one[key] == two[key] for key in one.keys() & two.keys()), group


def test_names_are_the_command_lines():
    for cell in published():
        assert (CONF / "model" / f"{cell.model}.yaml").exists()
        assert cell.method == "fp" or (CONF / "quant" / f"{cell.method}.yaml").exists()
        task = CONF / "task" / cell.task
        assert task.is_dir() or task.with_name(f"{task.name}.yaml").exists()
        assert cell.setting.split()[:1] in (["B"], ["Q"]) or cell.method == "fp"
        assert (cell.bits in ("16", "32")) == (cell.method == "fp")


def test_oddities_are_noted():
    noted = {(c.table, c.model, c.metric) for c in published() if c.note and c.table != "figure07"}
    copied = {c for c in noted if c[0] == "table20"}
    assert len(copied) == 7
    assert {model for _, model, _ in copied} == {"llama_33b"}
    assert noted - copied == {
        ("table02", "resnet18", "top1"),
        ("table03", "resnet18", "top1"),
        ("table08", "mobilenet_v2", "top1"),
        ("table08", "mobilenet_v2", "top5"),
        ("table09", "resnet18", "top1"),
        ("table10", "mobilenet_v2", "top1"),
        ("table10", "mobilenet_v2", "top5"),
        ("table21", "llama_33b", "winogrande"),
    }


def test_the_copy_error_is_table_19s_row():
    copied = [c.value for c in published("table20") if c.note]
    row = [c.value for c in published("table19") if (c.model, c.method) == ("llama_33b", "fp")]
    assert copied == row[:7]


def test_bars_of_the_figure():
    """Typed from the figure: 2048, 1024, 512, 256, 128, 64, 32 samples."""
    bars = {
        "flexround": [0.22, 0.11, 0.07, 0.21, 0.20, 0.32, 0.44],
        "adaround": [0.25, 0.25, 0.35, 0.19, 0.25, 0.24, 0.41],
    }
    for method, values in bars.items():
        cells = [c for c in published("figure07") if c.method == method]
        assert [float(c.note.split(",")[0].removeprefix("error bar ")) for c in cells] == values


HEADER = ",".join(COLUMNS)
GOOD = "table01,resnet18,imagenet,fp,,32,top1,71.00,"


def test_a_good_file(tmp_path):
    path = tmp_path / "paper.csv"
    path.write_text(f"{HEADER}\n{GOOD}\n")
    cell = Cell("table01", "resnet18", "imagenet", "fp", "", "32", "top1", "71.00", "")
    assert read(path, COLUMNS) == [cell]
    assert cell.value == 71.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: columns , not table,"),
        (HEADER.replace("bits", "width"), ":1: columns table,model,task,method,setting,width,"),
        (f"{HEADER}\n{GOOD}\n{GOOD},more", ":3: 10 fields, not 9"),
        (f"{HEADER}\n\n{GOOD}", ":2: 0 fields, not 9"),
        (f"{HEADER}\n{GOOD.replace('71.00', '71,00')}", ":2: 10 fields, not 9"),
        (f"{HEADER}\n{GOOD.replace('71.00', 'high')}", ":2: value high is no finite number"),
        (f"{HEADER}\n{GOOD.replace('71.00', 'nan')}", ":2: value nan is no finite number"),
        (f"{HEADER}\n{GOOD.replace('71.00', 'inf')}", ":2: value inf is no finite number"),
        (f"{HEADER}\n{GOOD.replace('71.00', '')}", ":2: no value"),
        (f"{HEADER}\n{GOOD.replace('resnet18', '')}", ":2: no model"),
        (f"{HEADER}\n{GOOD.replace(',32,', ',W4A,')}", ":2: bits W4A: give 32, 16, W4A16, W4 or -"),
        (f"{HEADER}\n{GOOD}\n{GOOD}", ":3: a second value of table01 resnet18 imagenet fp"),
    ],
)
def test_a_bad_row_is_named(tmp_path, text, message):
    path = tmp_path / "paper.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"paper\.csv") as error:
        read(path, COLUMNS)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["table2", "table002", "Table 2", "TABLE02"])
def test_a_table_numbered_otherwise_is_suggested(name):
    with pytest.raises(ValueError, match=f"^no table {name}; did you mean table02\\?$"):
        published(name)


def test_near_names_are_suggested():
    with pytest.raises(ValueError, match=r"no table figur7; did you mean figure07\?"):
        published("figur7")
    with pytest.raises(ValueError, match=r"did you mean QDrop@ef37616 README\.md\?"):
        others("QDrop README")
    with pytest.raises(ValueError, match="no table x; there are figure07, table01, "):
        published("x")
