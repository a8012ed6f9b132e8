"""ViT and DeiT as chains: patch embedding, transformer blocks, classifier."""

from __future__ import annotations

import copy

import pytest
import torch
from hydra import compose, initialize_config_module
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from experiment.build import build
from flexround.activations.schemes import DynamicPerToken, StaticPerTensor
from flexround.grid import Grid, PerChannel, PerTensor
from flexround.models.vision import VisionAdapter, VisionModel
from flexround.quantizers.rtn import RTN
from flexround.ranges import MinMax
from flexround.reconstruction.callbacks import ReportLog
from flexround.reconstruction.layerwise import Solve
from flexround.structure import is_quantizable
from results.records.store import Store
from tests.flexround.quantizers.methods import METHODS
from tests.flexround.reconstruction.test_reconstruction import SETTING
from tests.flexround.solvers.test_solvers import PLAIN

CPU = torch.device("cpu")
LAYERS = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
NAMES = ["patch_embed.proj", "blocks.0", "blocks.1", "head"]
STATIC = StaticPerTensor(8, False, 8, 6, kv_bits=None, init_samples=8, ranges_from="quant")


def images(n=2, dtype=torch.float32):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(3)).to(dtype)


def network(kind=VisionTransformer, **options):
    torch.manual_seed(0)
    net = kind(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=5,
               mlp_ratio=2, **options)  # fmt: skip
    for parameter in net.parameters():  # a fresh one starts with blocks that do next to nothing
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net.eval()


def vit(dtype=torch.float32, **options):
    return VisionAdapter(network(**options).to(dtype), images(2, dtype), 8, CPU)


def test_blocks_and_layers_are_those_of_the_architecture():
    target = vit()
    assert [block.name for block in target.blocks()] == NAMES
    blocks = [f"blocks.{i}.{name}" for i in range(2) for name in LAYERS]
    assert list(target.layers()) == ["patch_embed.proj", *blocks, "head"]
    bits = {name: layer.bits for name, layer in target.layers().items() if layer.bits is not None}
    assert bits == {"patch_embed.proj": 8, "head": 8}, "the first and the last layer"
    quantized = {id(layer.module.weight) for layer in target.layers().values()}
    rest = {n for n, p in target.model.named_parameters() if p.dim() > 1 and id(p) not in quantized}
    assert rest == {"cls_token", "pos_embed"}


@pytest.mark.parametrize(
    "options",
    [{}, {"class_token": False, "global_pool": "avg"}, {"reg_tokens": 2, "no_embed_class": True},
     {"init_values": 0.5, "pre_norm": True}, {"qk_norm": True, "dynamic_img_size": True}],
    ids=["vit", "pooled", "registers", "layer_scale", "qk_norm"],
)  # fmt: skip
def test_walking_the_blocks_is_the_networks_own_forward_pass(options):
    target, batch = vit(torch.float64, **options), images(5, torch.float64)
    stream = target.record_calls([batch])
    for index, block in enumerate(target.blocks()):
        outputs = stream.replay_all(block.module, 3, CPU)
        if block is not target.blocks()[-1]:
            stream = stream.with_inputs(target.advance(index, outputs))
    torch.testing.assert_close(outputs, target.forward(batch), rtol=1e-12, atol=1e-12)


def test_activation_sites_are_the_inputs_of_layers():
    """As in language: softmax, norms and the image are left alone; the classifier's has head's."""
    sites = [site for block in vit().blocks() for site in block.sites]
    inner = [f"blocks.{i}.{name}.input" for i in range(2) for name in LAYERS]
    assert [site.name for site in sites] == [*inner, "head.input"]
    assert [site.role for site in sites] == ["inner"] * 8 + ["head"]


@torch.no_grad()
def test_the_loss_sums_over_the_channels_of_images_and_over_those_of_tokens():
    target, log = vit(), ReportLog()
    before = copy.deepcopy(target.model)
    SETTING(
        target, [images(16)], quantizer=RTN, grid=Grid(3, True, PerTensor()), ranges=MinMax(),
        generator=torch.Generator().manual_seed(0), callbacks=[log],
    )  # fmt: skip
    axes = {"patch_embed.proj": 1, "blocks.0": 2, "blocks.1": 2, "head": 1}
    for report in log.blocks:
        seen = []
        for net in (before, target.model):
            module = net.get_submodule(report.name)
            handle = module.register_forward_hook(lambda m, args, out, seen=seen: seen.append(out))
            net(images(16))
            handle.remove()
        error = (seen[0] - seen[1]).square().sum(axes[report.name]).mean()
        assert report.error_after == pytest.approx(error.item(), rel=1e-4), report.name


def quantized(setting, method, activation=None, batch=None):
    log, target = ReportLog(), vit()
    setting(
        target, [images(32) if batch is None else batch], quantizer=method,
        grid=Grid(3, False, PerChannel()), ranges=MinMax(), activation=activation,
        generator=torch.Generator().manual_seed(0), callbacks=[log],
    )  # fmt: skip
    return target, [report for report in log.blocks if report.name in NAMES]


@pytest.mark.parametrize("activation", [None, STATIC, DynamicPerToken(8, None)])
@pytest.mark.parametrize(
    ("setting", "method"),
    [(SETTING, METHODS["flexround"]), (Solve(8, True), PLAIN)], ids=["flexround", "gptq"],
)  # fmt: skip
def test_methods_beat_round_to_nearest(setting, method, activation):
    target, reports = quantized(setting, method, activation)
    inner = [report for report in reports if report.name.startswith("blocks")]
    assert len(inner) == 2
    assert all(report.error_after < report.error_before for report in inner)
    for layer in target.layers().values():
        levels = [len(row.unique()) for row in layer.module.weight.flatten(1)]
        assert max(levels) <= 2 ** (layer.bits or 3)
    quantizers = [] if target.activations is None else target.activations.quantizers()
    assert [q.bits for q in quantizers] == (
        [] if activation is None else [8] * 8 + [6 if activation is STATIC else 8]
    )


def test_the_distillation_tokens_second_head_is_refused():
    with pytest.raises(ValueError, match="block head_dist needs more than the output of head"):
        VisionAdapter(network(VisionTransformerDistilled), images(), 8, CPU)


@pytest.mark.parametrize("name", ["vit_tiny", "vit_small", "deit_tiny", "deit_small"])
def test_every_yaml_names_an_architecture_that_is_followed(name):
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", [f"model={name}"])
    model = build(cfg.model)
    net = model.build(10, 32)
    example = torch.zeros(2, 3, 32, 32)
    target = VisionAdapter(net, example, model.first_last_bits, CPU)
    assert len(target.blocks()) == 1 + 12 + 1
    assert len(target.layers()) == 1 + 12 * 4 + 1
    held = sum(p.numel() for p in net.parameters() if p.dim() > 1)
    own = sum(m.weight.numel() for m in net.modules() if is_quantizable(m))
    share = sum(layer.module.weight.numel() for layer in target.layers().values()) / held
    assert share == own / held > 0.99


def test_an_unknown_tag_is_refused():
    model = VisionModel("timm", "deit_tiny_patch16_224.nobody", None, 8, False, False, [])
    with pytest.raises(ValueError, match="timm has no such model"):
        model.build(10)


def test_a_run_ends_in_its_record(cli, results_dir):
    tiny = ("model=vit_tiny", "model.name=test_vit", "task=digits", "num_samples=32", "bits=3")
    outcome = cli(*tiny, "quant=gptq", "activation=dynamic_per_token", "act_bits=8")
    assert outcome.status == 0, outcome.err
    (record,) = Store(results_dir).load()
    assert record.metrics["top1"] > 50
    refused = cli(*tiny, "quant=rtn", "activation=static_per_tensor", "act_stem_bits=4")
    assert refused.status != 0
    assert "act_stem_bits=4 does nothing with the chosen model" in refused.err


def test_tokens_of_their_own_ranges_are_no_images():
    class Net(nn.Sequential):
        """A convolutional classifier."""

    net = Net(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    target = VisionAdapter(net, images(), None, CPU)
    with pytest.raises(ValueError, match="DynamicPerToken is for transformers"):
        SETTING.check(
            target, [images(8)], Grid(4, True, PerTensor()), RTN, DynamicPerToken(8, None)
        )
