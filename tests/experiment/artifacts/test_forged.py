"""Files that a stranger has forged: a sound result or one line, no code of theirs, nothing left."""

from __future__ import annotations

import json
import random
import shutil
import struct

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import artifact
from experiment.artifacts.stated_overrides import composable
from flexround.artifact.file_format import _digest
from flexround.artifact.header import DIGEST, FILE, KEY
from results.records.outcomes import pack, unpack
from results.records.store import Store
from tasks.language import pretrained, tiny_models
from tasks.language.tiny_families import config_of
from tasks.vision import checkpoints
from tests.conftest import TINY

SENTINEL = "the-file-that-code-of-a-stranger-makes"
NUMBERS = [-1, 0, 1, 3, 2**31, 2**40, 2**62, 2**63, 10**30, 0.5, 1e308, float("nan"), float("inf")]


@pytest.fixture
def sound(cli, results_dir, monkeypatch, tmp_path):
    """Return the folder of a sound artifact; the working folder is an empty one."""
    outcome = cli(*TINY, "quant=rtn", "bits=3", "num_samples=64", "progress=false", "save=true",
                  "activation=static_per_tensor", "act_bits=4")  # fmt: skip
    assert outcome.status == 0, outcome.err
    (record,) = Store(results_dir).load()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return Store(results_dir).artifact(record.run_id)


def hostile(draw, folder):
    """Return a value that no sound header has."""
    command = f"touch {folder}/{SENTINEL}"
    texts = [
        "", "\n", "\x1b[31m", "a" * 5000, "\u202e", "load", "os.system", "../../x",
        "${oc.env:HOME}", "__class__", "/etc/passwd", command,
        {"_target_": "os.system", "command": command},
    ]  # fmt: skip
    deep = []
    for _ in range(draw.choice([20, 400])):
        deep = [deep]
    return draw.choice([*texts, *NUMBERS, None, True, [], {}, [1, [2]], deep])


def mutated(draw, value, folder):
    """Return JSON value with one to three of its parts replaced, renamed or taken away."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.randint(1, 3)):
        places = [value]
        for place in places:
            inner = place.values() if isinstance(place, dict) else place
            places += [v for v in inner if isinstance(v, dict | list) and v]
        place = draw.choice(places)
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        kind = draw.randrange(4) if isinstance(place, dict) else 0
        if kind == 1:
            del place[key]
        elif kind == 2:
            place[str(hostile(draw, folder))] = place.pop(key)
        elif isinstance(place[key], int | float) and draw.random() < 0.5:
            place[key] = draw.choice(NUMBERS)
        else:
            place[key] = hostile(draw, folder)
        if not value:
            break
    return value


def damaged(draw, data):
    """Return bytes with some flipped, cut off, or put in."""
    data, kind = bytearray(data), draw.randrange(3)
    if kind == 0:
        for _ in range(draw.choice([1, 1, 8, 100])):
            place = draw.randrange(len(data)) if draw.random() < 0.5 else draw.randrange(
                min(len(data), 600))  # fmt: skip
            data[place] = draw.randrange(256)
    elif kind == 1:
        del data[draw.randrange(len(data)) :]
    else:
        place = draw.randrange(min(len(data), 600))
        data[place:place] = draw.randbytes(draw.choice([1, 8, 4000]))
    return bytes(data)


def header_of(path):
    with open(path, "rb") as file:
        metadata = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    return json.loads(metadata[KEY])


OVERRIDES = [
    "model={_target_:os.system,command:'touch SENTINEL'}", "model._target_=os.system",
    "+model._args_=['touch SENTINEL']", "task.preprocessing._target_=os.system", "~model.leave",
    "model._partial_=true", "model.name={_target_:os.system,command:'touch SENTINEL'}",
    "hydra.searchpath=[file://FOLDER]", "hydra.job.env_set.A=b", "hydra/launcher=slurm",
    "+hydra.callbacks.x._target_=os.system", "model.name=${oc.env:HOME}", "model=../../../x",
    "model.name='${oc.decode:x}'", "data_dir=FOLDER", "results_dir=FOLDER", "cache_dir=FOLDER",
    "checkpoint=/etc/passwd", "logger=wandb", "save=true", "plugins=[os]", "model=/etc/x",
    "model@task=x", "bits=3,4", "bits=glob(*)", "model.leave=[{_target_:os.system}]", "a", "",
    "task.cache_dir=FOLDER", "task.num_workers=9999", "protocol.window=-1", "bits=9", "seed=1e400",
    "task=zero_shot", "task=text", "task=imagenet", "model=tiny_llama", "quant=gptq", "device=meta",
    "experiment=demo", "num_samples=[[[[[[[[[[[[1]]]]]]]]]]]]", "preprocessing=null", "model=hf",
    "model.source=http://localhost/x", "task={}", "bits=null", "model=null", "idle={}",
]  # fmt: skip


def forged_artifact(draw, sound, folder):
    """Write a forged artifact into folder."""
    shutil.copytree(sound, folder)
    file, kind = folder / FILE, draw.randrange(4)
    if kind == 0:
        file.write_bytes(damaged(draw, file.read_bytes()))
        return
    held, header = load_file(file), header_of(file)
    if kind == 1:
        header = mutated(draw, header, folder)
    elif kind == 2:
        own = header["facts"]["record"]["overrides"]
        text = draw.choice(OVERRIDES).replace("FOLDER", str(folder))
        own.insert(draw.randint(0, len(own)), text.replace("SENTINEL", f"{folder}/{SENTINEL}"))
    else:
        name = draw.choice(list(held))
        tensor = held[name]
        held[draw.choice([name, name + "x"])] = draw.choice([
            lambda: tensor[:-1] if tensor.dim() else tensor[None],
            lambda: tensor.to(torch.int64), lambda: tensor.to(torch.bfloat16),
            lambda: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor,
            lambda: torch.full_like(tensor, 1), lambda: tensor[None], lambda: torch.zeros(0),
        ])().clone().contiguous()  # fmt: skip
    text = json.dumps(header)
    save_file(held, file, {KEY: text, DIGEST: _digest(text, held)})


@pytest.mark.parametrize("value", ['"*"', "['*.k_proj']", "[layers.?]", "['a[!b]']"])
@pytest.mark.parametrize("option", ["model.name", "quant.rank", "task.path", "bits", "leave"])
def test_patterns_are_for_the_names_of_weights_alone(option, value):
    assert composable([f"model.leave={value}"], []) == [f"model.leave={value}"]
    with pytest.raises(ValueError, match=r"\A[^\n]*a file (gives|names|sets) [^\n]*\Z"):
        composable([f"{option}={value}"], [])


@pytest.mark.parametrize(
    "value", ["/etc/*", "${oc.env:HOME}", "a\\b", "{a,b}", "$(touch x)", "a;b"]
)
def test_nor_does_a_pattern_hold_anything_else(value):
    with pytest.raises(ValueError, match="a file gives plain values alone"):
        composable([f"model.leave=['*','{value}']"], [])


def listing(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def one_line(error):
    text = str(error)
    return text.strip() and len(text.splitlines()) == 1 and text.isprintable()


def artifacts_do_no_harm(count, sound, tmp_path, cache_dir, capsys):
    draw, found = random.Random(0), {0: 0, 1: 0}
    for number in range(count):
        folder = tmp_path / "forged"
        forged_artifact(draw, sound, folder)
        before, out = listing(folder), tmp_path / "out"
        commands = [["inspect", folder], ["eval", folder, f"cache_dir={cache_dir}"]]
        if number % 4 == 0:
            commands.append(["export", folder, "--to", "gptq", "--out", out])
        for command in commands:
            status = artifact.main([str(word) for word in command])
            told = capsys.readouterr()
            found[status] += 1
            assert status == 0 or one_line(told.err.rstrip("\n")), (number, told.err)
            assert listing(folder) == before, number
            assert not out.exists()
            assert not list((tmp_path / "cwd").iterdir())
        shutil.rmtree(folder)
    return found


def test_forged_artifacts(sound, tmp_path, cache_dir, capsys):
    found = artifacts_do_no_harm(20, sound, tmp_path, cache_dir, capsys)
    assert found[0]
    assert found[1]


@pytest.mark.slow
def test_five_hundred_forged_artifacts(sound, tmp_path, cache_dir, capsys):
    artifacts_do_no_harm(500, sound, tmp_path, cache_dir, capsys)


def refused_or_read(read, *args):
    """Return whether read takes what there is; it refuses it in one line otherwise."""
    try:
        read(*args)
    except ValueError as error:
        lines = str(error).splitlines()
    else:
        return True
    assert len(lines) == 1, lines
    return False


def forged_safetensors(draw, folder):
    """Return a file of safetensors with a forged header."""
    sound = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
             "b": {"dtype": "I64", "shape": [2], "data_offsets": [24, 40]}}  # fmt: skip
    text = json.dumps(mutated(draw, sound, folder)).encode()
    file = folder / "it.safetensors"
    length = len(text) if draw.random() < 0.8 else draw.choice([0, 1, 2**40, 2**63])
    file.write_bytes(struct.pack("<Q", length) + text + bytes(40))
    if draw.random() < 0.3:
        file.write_bytes(damaged(draw, file.read_bytes()))
    return file


def gguf(numbers):
    """Return a GGUF file of a llama with numbers for its sizes, and one tensor of 8 numbers."""

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    entries = [text("general.architecture") + struct.pack("<I", 8) + text("llama")]
    entries += [text(f"llama.{k}") + struct.pack("<II", 4, v) for k, v in numbers.items()]
    words = ["<s>", "</s>", "a", "b"]
    entries.append(
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 4) + b"".join(map(text, words))
    )
    tensor = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 4, 2, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(entries)) + b"".join(entries) + tensor
    return head + bytes(-len(head) % 32) + bytes(32)


def forged_gguf(draw, folder):
    """Return a forged GGUF file."""
    names = ("block_count", "embedding_length", "feed_forward_length", "context_length",
             "attention.head_count", "attention.head_count_kv", "vocab_size")  # fmt: skip
    file = folder / "it.gguf"
    numbers = {name: draw.choice([0, 1, 2, 4, 2**16, 2**31, 2**32 - 1]) for name in names}
    file.write_bytes(gguf(numbers))
    if draw.random() < 0.7:
        file.write_bytes(damaged(draw, file.read_bytes()))
    if draw.random() < 0.2:
        claims = [draw.choice([0, 1, 2**32, 2**60]) for _ in range(2)]
        file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *claims) + draw.randbytes(60))
    return file


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Return the folder of a sound tiny network."""
    folder = tmp_path_factory.mktemp("llama") / "it"
    network = transformers.AutoModelForCausalLM.from_config(config_of("llama"))
    pretrained.save(network, tiny_models.tokenizer(pairs=False), folder)
    return folder


def networks_do_no_harm(count, llama, tmp_path):
    draw, auto = random.Random(1), transformers.AutoModelForCausalLM
    found = {True: 0, False: 0}
    for _ in range(count):
        folder = tmp_path / "network"
        shutil.copytree(llama, folder)
        path = draw.choice([p for p in sorted(folder.iterdir()) if p.suffix == ".json"])
        config = json.loads(path.read_text())
        if draw.random() < 0.8:
            path.write_text(json.dumps(mutated(draw, config, tmp_path)))
        else:
            path.write_bytes(damaged(draw, path.read_bytes()))
        before = listing(folder)
        found[refused_or_read(pretrained.load, auto, str(folder))] += 1
        assert listing(folder) == before
        assert not (tmp_path / SENTINEL).exists()
        shutil.rmtree(folder)
    return found


def test_forged_configurations(llama, tmp_path):
    assert networks_do_no_harm(15, llama, tmp_path)[False]


@pytest.mark.slow
def test_two_hundred_forged_configurations(llama, tmp_path):
    networks_do_no_harm(200, llama, tmp_path)


@pytest.mark.parametrize(
    "count", [pytest.param(20, id="few"), pytest.param(200, id="many", marks=pytest.mark.slow)]
)
def test_forged_gguf_files(count, tmp_path):
    draw, auto = random.Random(2), transformers.AutoModelForCausalLM
    for _ in range(count):
        assert not refused_or_read(pretrained.load, auto, str(forged_gguf(draw, tmp_path)))


def test_forged_checkpoints(tmp_path):
    draw = random.Random(3)
    for _ in range(300):
        refused_or_read(checkpoints.read, forged_safetensors(draw, tmp_path))


def test_forged_outcomes():
    draw = random.Random(4)
    sound = pack({"top1": torch.tensor([True] * 9), "loss": torch.ones(5)}, "1")
    for _ in range(300):
        refused_or_read(unpack, damaged(draw, sound), "1")
