"""Architectures of torchvision and timm with fresh weights: each is followed, or refused in a line.

`pytest -s -m slow` on this file prints the table of docs/vision.md.
"""

from __future__ import annotations

import pytest
import torch

from flexround.models.vision import VisionAdapter, VisionModel

CPU = torch.device("cpu")
# (library, name, pixels a side); one of every family or so, a small one.
FOLLOWED = """
torchvision: alexnet vgg11 vgg11_bn resnet18 resnext50_32x4d wide_resnet50_2 shufflenet_v2_x0_5
    mobilenet_v2 mobilenet_v3_small efficientnet_b0 efficientnet_v2_s
timm: vit_tiny_patch16_224/32 vit_small_patch16_224.augreg_in1k/32 deit_tiny_patch16_224/32
    deit_small_patch16_224.fb_in1k/32 deit3_small_patch16_224/32 test_vit/32 test_vit2/32
    test_vit4/32 test_resnet resnet10t resnet26d resnet50_gn seresnet50 ecaresnet26t
    efficientnet_b0 tf_efficientnet_b0 tf_efficientnetv2_b0 tf_efficientnet_lite0
    efficientnet_lite0 mixnet_s tf_mixnet_s mobilenetv3_small_050 tf_mobilenetv3_small_075
    mobilenetv4_conv_small mnasnet_small fbnetc_100 spnasnet_100 semnasnet_075 lcnet_050
    tinynet_e hardcorenas_a regnetx_002 regnety_002 convit_tiny/224 visformer_tiny/224 tresnet_m
    vgg11 starnet_s1 flexivit_small/48
"""
REFUSED = """
torchvision: squeezenet1_1 densenet121 inception_v3/128 googlenet mnasnet0_5 regnet_x_400mf
    regnet_y_400mf convnext_tiny vit_b_16/224 swin_t swin_v2_t maxvit_t/224
timm: deit_tiny_distilled_patch16_224/32 test_vit3/32 test_vit_relpos/32
    vit_relpos_small_patch16_224/32 vit_srelpos_small_patch16_224/32 vit_small_r26_s32_224/64
    beit_base_patch16_224/32 eva02_tiny_patch14_224/28 cait_xxs24_224/32 xcit_nano_12_p16_224/32
    swin_tiny_patch4_window7_224/64 swinv2_tiny_window8_256/64 pvt_v2_b0 twins_svt_small
    mixer_s32_224/64 resmlp_12_224/32 gmlp_s16_224/32 convmixer_768_32 convnext_atto
    test_convnext resnetv2_50 skresnet18 res2net50_26w_4s resnest14d densenet121 dla34 dpn68
    hrnet_w18_small xception41 xception65 inception_v4/128 inception_resnet_v2/128
    inception_next_tiny ghostnet_050 ghostnetv2_100 rexnet_100 regnetz_b16 repvgg_a0 repvit_m0_9
    nfnet_l0 test_nfnet dm_nfnet_f0 levit_128s/224 poolformer_s12 coat_tiny/64
    coatnet_nano_rw_224/64 maxvit_nano_rw_256/64 mobilevit_xxs mobileone_s0 mobilevitv2_050
    edgenext_xx_small efficientformer_l1/224 efficientvit_b0 fastvit_t8 focalnet_tiny_srf
    gcvit_xxtiny/224 hgnet_tiny volo_d1_224/224 crossvit_tiny_240/240 tnt_s_patch16_224/224
    nest_tiny/224 vovnet39a ese_vovnet19b_dw selecsls42 cspresnet50 darknet53 legacy_senet154
    legacy_seresnet18 sequencer2d_s/224 davit_tiny mambaout_femto test_byobnet pit_ti_224/224
    tiny_vit_5m_224/224 hiera_tiny_224/224 vit_base_patch16_siglip_224/32
"""


def listed(text):
    found = []
    for word in text.split():
        if word.endswith(":"):
            library = word.removesuffix(":")
        else:
            name, _, size = word.partition("/")
            found.append((library, name, int(size or 64)))
    return found


def built(library, name, size):
    torch.manual_seed(0)
    return VisionModel(library, name, None, 8, False, False).build(10, size)


@pytest.mark.slow
@pytest.mark.parametrize(("library", "name", "size"), listed(FOLLOWED), ids=lambda v: str(v))
@torch.no_grad()
def test_walking_the_blocks_is_the_networks_own_forward_pass(library, name, size):
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    target = VisionAdapter(built(library, name, size), images[:2], 8, CPU)
    stream = target.record_calls([images])
    for index, block in enumerate(target.blocks()):
        outputs = stream.replay_all(block.module, 4, CPU)
        if block is not target.blocks()[-1]:
            stream = stream.with_inputs(target.advance(index, outputs))
    wanted = target.forward(images)
    torch.testing.assert_close(outputs, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
    print(f"\n{library} {name}: {len(target.blocks())} units, {len(target.layers())} layers")


@pytest.mark.slow
@pytest.mark.parametrize(("library", "name", "size"), listed(REFUSED), ids=lambda v: str(v))
def test_what_is_no_chain_of_layers_is_refused_in_one_line(library, name, size):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        VisionAdapter(built(library, name, size), torch.randn(2, 3, size, size), 8, CPU)
    assert "\n" not in str(refusal.value)
    print(f"\n{library} {name}: {refusal.value}")
