"""Our methods against their authors' code: the share of identical codes on the same inputs.

`python -m benchmarks.authors --repositories DIR` prints it for every repository that DIR holds a
clone of: BRECQ, CalibTIP, FlexRound_LRQ, GPTAQ, OmniQuant, QDrop, auto-round, gptq. With --data-
dir, WikiText2's files, the layers are real ones (SmolLM2-135M), else random ones. Weights, first
ranges, batches, rates and iterations are the same on both sides; theirs run with the gradient of
torch.clamp that they were written for. Methods whose optimizer is Adam are compared in float64: it
divides each gradient by its own size, and in float32 the order of sums decides many that are nearly
zero.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.authors_of_solvers import gptaq, gptq
from benchmarks.layer_set import RealLayer, layer_set
from benchmarks.side_by_side import Theirs, importing, same, trained
from flexround.activations.quantizers import TensorQuantizer
from flexround.grid import Grid, PerChannel
from flexround.quantizers.adaquant import AdaQuant
from flexround.quantizers.adaround import AdaRound
from flexround.quantizers.clipping import LWC
from flexround.quantizers.flexround import FlexRound
from flexround.quantizers.lrq import LRQ
from flexround.quantizers.signround import SignRound
from flexround.ranges import LpSearch, MinMax

Adam = partial(torch.optim.Adam, fused=True)
RANK = 16


def division(layer: RealLayer, bits: int, low_rank: bool) -> float:
    """FlexRound and LRQ: UniformAffineQuantizer of the code for language models."""
    from quant.UniformAffineQuantizer import UniformAffineQuantizer

    grid, weight = Grid(bits, False, PerChannel()), layer.weight
    theirs = UniformAffineQuantizer(
        bits, clipping=False, channel_wise=True, mode="flexround", org_weight=weight
    )
    ours: FlexRound | LRQ
    if low_rank:
        ours = LRQ(weight, grid=grid, ranges=MinMax(), rank=RANK, rank_rule="fixed", seed=0)
        assert ours.u2 is not None
        theirs.delta4, theirs.delta2 = theirs.delta3, nn.Parameter(ours.l2.detach().clone())
        theirs.delta3 = nn.Parameter(ours.u2.detach().clone())
        theirs.delta5 = nn.Parameter(weight.new_zeros(1, weight.shape[1]))
    else:
        ours = FlexRound(
            weight, grid=grid, ranges=MinMax(), learn_s1=True, use_s3=True, use_s4=True
        )
    params = [p for p in theirs.parameters() if p.requires_grad]
    side = Theirs(lambda: theirs(weight), params, [Adam(params, lr=3e-3)])
    return same(*trained(layer, ours, side, 3e-3, 200), theirs.delta1.exp())


def adaround(layer: RealLayer, bits: int) -> float:
    """AdaRound: BRECQ's AdaRoundQuantizer, its penalty and its annealing."""
    from quant.adaptive_rounding import AdaRoundQuantizer
    from quant.block_recon import LinearTempDecay
    from quant.quant_layer import UniformAffineQuantizer

    weight, iters = layer.weight, 200
    first = UniformAffineQuantizer(bits, channel_wise=True, scale_method="mse")
    first(weight)
    theirs = AdaRoundQuantizer(first, weight, round_mode="learned_hard_sigmoid")
    theirs.soft_targets = True
    decay = LinearTempDecay(iters, rel_start_decay=0.2, start_b=20, end_b=2)

    def penalty(iteration: int) -> Tensor | float:
        if iteration < 0.2 * iters:
            return 0.0
        soft = theirs.get_soft_targets()
        return 0.01 * (1 - ((soft - 0.5).abs() * 2).pow(decay(iteration))).sum()

    ours = AdaRound(
        weight, grid=Grid(bits, False, PerChannel()), ranges=LpSearch(2.4, 80, 0.01),
        reg_weight=0.01, beta_start=20, beta_end=2, warmup=0.2, anneal="linear",
    )  # fmt: skip
    side = Theirs(lambda: theirs(weight), [theirs.alpha], [Adam([theirs.alpha], lr=1e-2)], penalty)
    found, _ = trained(layer, ours, side, 1e-2, iters)
    theirs.soft_targets = False
    return same(found, theirs(weight), theirs.delta)


def adaquant(layer: RealLayer, bits: int) -> float:
    """AdaQuant: CalibTIP's quantize_with_grad and its Adams, the bias left out."""
    from models.modules.quantize import QParams, calculate_qparams, quantize_with_grad

    weight = nn.Parameter(layer.weight.clone())
    first = calculate_qparams(weight, bits, reduce_dim=None)
    ends = [nn.Parameter(first.range.clone()), nn.Parameter(first.zero_point.clone())]

    def forward() -> Tensor:
        return quantize_with_grad(weight, num_bits=bits, qparams=QParams(*ends, bits))

    ours = AdaQuant(
        layer.weight, grid=Grid(bits, False, PerChannel()), ranges=MinMax(),
        lr_v=1e-5, lr_range=1e-3,
    )  # fmt: skip
    adams = [Adam([weight], lr=1e-5), Adam(ends, lr=1e-3)]
    side = Theirs(forward, [weight, *ends], adams)
    return same(*trained(layer, ours, side, 0, 100), ends[0] / (2**bits - 1))


def lwc(layer: RealLayer, bits: int) -> float:
    """LWC: OmniQuant's UniformAffineQuantizer."""
    from quantize.quantizer import UniformAffineQuantizer

    weight = layer.weight
    theirs = UniformAffineQuantizer(
        bits, dynamic_method="per_channel", shape=weight.shape, lwc=True
    ).to(weight.dtype)
    ours = LWC(weight, grid=Grid(bits, False, PerChannel()), ranges=MinMax(), first_logit=4.0)
    params = [theirs.upbound_factor, theirs.lowbound_factor]
    side = Theirs(lambda: theirs(weight), params, [Adam(params, lr=1e-2)])
    return same(*trained(layer, ours, side, 1e-2, 200), theirs.scale)


def signround(layer: RealLayer, bits: int, symmetric: bool) -> float:
    """SignRound: auto-round's WrapperLinear and SignSGD."""
    from auto_round.algorithms.quantization.sign_round.sign_sgd import SignSGD
    from auto_round.wrapper import WrapperLinear

    weight, lr = layer.weight, 1 / 200
    module = nn.Linear(*reversed(weight.shape), bias=False).requires_grad_(False)
    module.weight.copy_(weight)
    settings = {
        "bits": bits, "group_size": -1, "sym": symmetric, "data_type": "int", "act_bits": 16,
        "act_data_type": "int", "act_sym": True, "act_group_size": -1, "act_dynamic": True,
        "scale_dtype": torch.float32,
    }  # fmt: skip
    for name, value in settings.items():
        setattr(module, name, value)
    theirs = WrapperLinear(module, enable_torch_compile=False, device="cpu", iters=200)

    def quantized() -> tuple[Tensor, Tensor, Tensor]:
        out: tuple[Tensor, Tensor, Tensor] = theirs._qdq_weight(
            theirs.value, theirs.min_scale, theirs.max_scale
        )
        return out

    params = list(theirs.params.values())
    side = Theirs(lambda: quantized()[0], params, [SignSGD(params, lr=lr, weight_decay=0)])
    ours = SignRound(weight, grid=Grid(bits, symmetric, PerChannel()), ranges=MinMax())
    found, last = trained(layer, ours, side, lr, 200, signed=True)
    return same(found, last, quantized()[1])


def lsq(layer: RealLayer, bits: int) -> float:
    """LSQ: QDrop's LSQFakeQuantize on what enters the layer, from one scale; codes at the end."""
    from qdrop.quantization.fake_quant import LSQFakeQuantize
    from qdrop.quantization.observer import MinMaxObserver

    x = layer.inputs
    theirs = LSQFakeQuantize(MinMaxObserver, bit=bits, symmetric=False)
    ours = TensorQuantizer("x", bits, False, MinMax())
    with torch.no_grad():
        ours(x, 1.0, torch.Generator())
    theirs.scale.data = ours.scale.data.clone()
    theirs.zero_point.fill_(int(ours.zero_point))
    theirs.observer_enabled, theirs.fake_quant_enabled = 0, 1
    for quantizer, scale in ((lambda v: ours(v, 1.0, torch.Generator()), ours.scale),
                             (theirs, theirs.scale)):  # fmt: skip
        adam = Adam([scale], lr=1e-3 * scale.item())
        target = x @ layer.weight.T
        for _ in range(50):
            loss = (quantizer(x) @ layer.weight.T - target).square().sum(-1).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
    levels = [torch.round(q / s) for q, s in (
        (ours(x, 1.0, torch.Generator()), ours.scale), (theirs(x), theirs.scale))]  # fmt: skip
    return (levels[0] == levels[1]).float().mean().item()


PEERS: dict[str, tuple[str, Callable[[RealLayer, int], float]]] = {
    "FlexRound": ("FlexRound_LRQ", partial(division, low_rank=False)),
    "LRQ": ("FlexRound_LRQ", partial(division, low_rank=True)),
    "AdaRound": ("BRECQ", adaround),
    "AdaQuant": ("CalibTIP", adaquant),
    "LWC": ("OmniQuant", lwc),
    "LSQ (activations)": ("QDrop", lsq),
    "SignRound": ("auto-round", partial(signround, symmetric=False)),
    "SignRound, symmetric": ("auto-round", partial(signround, symmetric=True)),
    "GPTQ": ("gptq", partial(gptq, act_order=False)),
    "GPTQ, act-order": ("gptq", partial(gptq, act_order=True)),
    "GPTAQ, one block": ("GPTAQ/fake_quant", partial(gptaq, block_size=1 << 20)),
    "GPTAQ": ("GPTAQ/fake_quant", partial(gptaq, block_size=32)),
}
ADAM = ("FlexRound_LRQ", "BRECQ", "CalibTIP", "OmniQuant", "QDrop")


def random_layer() -> RealLayer:
    """Return a layer whose inputs have a few strong directions."""
    torch.manual_seed(0)
    inputs = torch.randn(16 * 8, 12) @ torch.randn(12, 96) + 0.3 * torch.randn(16 * 8, 96)
    return RealLayer("random", torch.randn(64, 96) * 0.05, inputs.view(16, 8, 96))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repositories", type=Path, required=True)
    parser.add_argument("--data-dir")
    parser.add_argument("--float32", action="store_true", help="all methods in float32")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    layers = layer_set(options.data_dir, 5, 16, 64) if options.data_dir else [random_layer()]
    names = [f"{layer.name.split('.')[-1]} W{bits}" for layer in layers for bits in options.bits]
    print("| method | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
    for name, (repository, share) in PEERS.items():
        folder = options.repositories / repository
        if not folder.exists():
            continue
        cells = []
        for layer in layers:
            if repository in ADAM and not options.float32:
                layer = RealLayer(layer.name, layer.weight.double(), layer.inputs.double())
            for bits in options.bits:
                with importing(folder.resolve()):
                    cells.append(f"{100 * share(layer, bits):.3f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
