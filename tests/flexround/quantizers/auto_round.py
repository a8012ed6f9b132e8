"""SignRound as auto-round computes it, on small inputs that come from integers.

RECORDED holds the codes that `theirs` returned with auto-round 0.16.1 of PyPI (its WrapperLinear
with scale_dtype=float32 and its SignSGD) under torch 2.14.1, its clamp patched to the gradient of
torch <= 2.13, 1 at a bound, which auto-round was written for. `python -m
tests.flexround.quantizers.auto_round` prints it again where auto-round is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from unittest import mock

import torch
from torch import nn

OUT, INTO, SEQUENCES, TOKENS, BATCH = 16, 32, 12, 4, 4


@dataclass(frozen=True)
class Case:
    """One run: bits, group size (-1 is a row), and the schedule."""

    bits: int
    group: int
    symmetric: bool
    iters: int
    lr: float


CASES = {
    "w4": Case(4, -1, False, 200, 1 / 200),
    "w2_g16": Case(2, 16, False, 200, 1 / 200),
    "w3_light": Case(3, -1, False, 50, 1 / 200),
    "w4_symmetric": Case(4, -1, True, 200, 1 / 200),
    "w2_g16_symmetric": Case(2, 16, True, 200, 1 / 200),
}


def numbers(count, seed):
    """Return count pseudo-random numbers around 0, of a linear congruential generator."""
    found = []
    for _ in range(count):
        total = 0
        for _ in range(4):
            seed = (1103515245 * seed + 12345) % 2**31
            total += seed >> 8
        found.append(total / 2**23 - 2)
    return torch.tensor(found)


def inputs():
    """Return weight [out, in] and inputs [sequences, tokens, in] of a few strong directions."""
    weight = numbers(OUT * INTO, 1).view(OUT, INTO) * 0.1
    strong = numbers(SEQUENCES * TOKENS * 8, 2).view(-1, 8) @ numbers(8 * INTO, 3).view(8, INTO)
    rest = numbers(SEQUENCES * TOKENS * INTO, 4).view(-1, INTO)
    return weight, (strong + 0.3 * rest).view(SEQUENCES, TOKENS, INTO)


def batches(iters):
    """Yield the samples of each iteration: a window that moves by five."""
    for index in range(iters):
        yield [(5 * index + i * (1 + index % 3)) % SEQUENCES for i in range(BATCH)]


def inclusive(x, min=None, max=None):
    """Return clamp with the gradient of torch <= 2.13: 1 inside, the bounds included."""
    held = CLAMP(x.detach(), min, max)
    return torch.where(held == x, x, held)


CLAMP = torch.clamp


def theirs(case):
    """Return auto-round's (codes [out, in], scale [groups], zero point [groups] or None)."""
    from auto_round.algorithms.quantization.sign_round.sign_sgd import SignSGD
    from auto_round.wrapper import WrapperLinear

    weight, x = inputs()
    layer = nn.Linear(INTO, OUT, bias=False).requires_grad_(False)
    layer.weight.copy_(weight)
    settings = {
        "bits": case.bits, "group_size": case.group, "sym": case.symmetric, "data_type": "int",
        "act_bits": 16, "act_data_type": "int", "act_sym": True, "act_group_size": -1,
        "act_dynamic": True, "scale_dtype": torch.float32,
    }  # fmt: skip
    for name, value in settings.items():
        setattr(layer, name, value)
    wrapped = WrapperLinear(layer, enable_torch_compile=False, device="cpu", iters=case.iters)
    optimizer = SignSGD(list(wrapped.params.values()), lr=case.lr, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, case.iters)
    target, best, least = x @ weight.T, {}, float("inf")
    for batch in batches(case.iters):
        with mock.patch("torch.clamp", inclusive):
            quantized, _, _ = wrapped._qdq_weight(
                wrapped.value, wrapped.min_scale, wrapped.max_scale
            )
        loss = nn.functional.mse_loss(x[batch] @ quantized.T, target[batch])
        if loss.item() < least:
            least, best = loss.item(), {k: p.detach().clone() for k, p in wrapped.params.items()}
        optimizer.zero_grad()
        (loss * 1000).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        quantized, scale, zero = wrapped._qdq_weight(
            best["value"], best["min_scale"], best["max_scale"]
        )
    levels = torch.round(quantized.view(len(scale), -1) / scale)
    codes = levels + (2 ** (case.bits - 1) if case.symmetric else zero)
    return codes.view(OUT, INTO), scale.flatten(), None if case.symmetric else zero.flatten()


def main():
    """Print RECORDED."""
    for name, case in CASES.items():
        codes = theirs(case)[0].int().flatten().tolist()
        text = "".join(f"{code:x}" for code in codes)
        print(f'    "{name}": (')
        for start in range(0, len(text), 64):
            print(f'        "{text[start : start + 64]}"')
        print("    ),")


# Codes from 0 on, one hexadecimal digit each, row by row.
RECORDED = {
    "w4": (
        "4818d68ed679a737480544adb3396f3a46d81ca94572373e9552639afa04340c"
        "8c5074b18a18950a1ae6ec557e554f86730ab8421280257436497b920eac9a1f"
        "655899e6a2ada557a7dd381ff8575a08f6199b302c991187b74d3517858ca97c"
        "296978f9308905c26b75652ccf88365971572094af01462aa279a70344330277"
        "fd164402030ac320de2f4806b1582f994a49b9659b502c2af4035a607a197469"
        "37b03d2616063fca3858335c20b5b24605c284168f74a382702c3632143fb06c"
        "ae7bf6fe7e88a55b6aaeccf80761ebcadd787c95555763cdb02b6a8aa6dfab6c"
        "af7968417adae40b9676bf56495b9298704c78a86f3838ac77f28fd3489f7155"
    ),
    "w2_g16": (
        "0101311321122101010110222001130212320332122112131110101132000002"
        "2310213022022103023132001200031021033311012012210102122003222203"
        "1001223120232001212201033101120131022200022200212103010120132213"
        "0212113200220120121111032322011210110021230011023133330122120123"
        "3312211101023110230301012011032113133322332013033101121012021112"
        "0120020101010322121211130031301201201101231020201002010001032012"
        "1201303202011001122322310110323233111320000100233013222222332323"
        "3322221022323103111123000102101110021121130101121130132001121000"
    ),
    "w3_light": (
        "2304633662344313240222465114371412630544123113164221214475021105"
        "4630325145144305157376323732274332056421114012322324464107564517"
        "3224447240465223536614077323250373155520165411445426221342465436"
        "1534347510450261354233165744233541341052570134155145541232220244"
        "6602210101045110661723025023174425245433452016157202253035143235"
        "2460262314042765243522362163623403614213474251413016232112176036"
        "4635727636334224244655630320655477443653323432675015354553775536"
        "5744342135657206533357332425414420152343261313452360375113362012"
    ),
    "w4_symmetric": (
        "b8d72971398659c8b7eabb524bc690c5b927e467ba8cc8c27aac9b6605fbcbf3"
        "8c5075b28918960a2ae6eb657d654e867be436acdc7ec97ab8a5735cf05264d0"
        "9aa766196d635aa85823c6e00798a5e709d553bec356dc6747a1b9d869635573"
        "c5857705bd65e92c847989c23065b8957c87bd4940eb97b44b6546d999a9da66"
        "02e9bcfdfcf53cdf21d0b7f93ea7d066a4a54588549ec3c40aea958e74d58a85"
        "c84fc3d9e9f9c035c797bca4df4a4db9f92c7ad8707a4b6b8ec2b8bccab03e82"
        "8b69d5eb6c678449488ba9c60640c9a8dd787c95555773cda02b6a8aa6dfab7c"
        "6197a8df95362cf57a9a50bac7b57e899fd49868a1e8d864991e803dc8719fca"
    ),
    "w2_g16_symmetric": (
        "3232021002211232323233111332203233023112322332302223232101333331"
        "2310213022022102310201332033302321033211012011223231211330101130"
        "2331110213101332121132300232213202311133301133221230323212101120"
        "3121220133113213212222300011322123213312103322313133330122110133"
        "3302210101033110103022321322301113133322332013030232212321312221"
        "3213303332323012122310230031301232131232102313232331323333301321"
        "2132030131322332122322310110323200222013333223003003132232332323"
        "3322221022323103232210333231232220132232231212333203201332202333"
    ),
}

if __name__ == "__main__":
    main()
