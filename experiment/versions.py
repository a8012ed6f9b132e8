"""Versions of what is built: in a run's name where the same settings gave another number before."""

from __future__ import annotations

from typing import Any

# Versions of what is built, by its class: raised whenever the same settings would give another
# number, as a task's own version is. SignRound's ends were rounded before 2; the solvers' Hessians
# counted padding, and took SAME padding of convolutions for another; AdaQuant took the negative
# scales of ImportanceSearch for 0, and that search counted padding before 3; a rotation's signs
# were turned behind its matrix, where they spread nothing.
# DeltaLoss took experts that no token reaches for layers that nothing harms.
VERSIONS = {
    "SignRound": 2, "GPTQ": 2, "CDQuant": 2, "ImportanceSearch": 3, "Hadamard": 2, "DeltaLoss": 2,
}  # fmt: skip
VERSION = "_version_"
# Of timm's networks, which it tests at the size that they were trained at.
SAME_SIZE = (
    "tf_efficientnet_lite0",
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "vit_small_patch16_224.augreg_in1k",
    "deit_tiny_patch16_224.fb_in1k", "deit_small_patch16_224.fb_in1k",
)  # fmt: skip
# Of these tasks' samples, which have padding, that was counted for static ranges before version 2.
PADDED = ("Classification", "TopicClassification", "Squad", "WebNLG")
# And of image networks but these, layers that take what a function or a gate gives had none.
MODULES_ALONE = ("resnet18", "resnet50", "mobilenet_v2", *SAME_SIZE)
# Networks whose pairs of convolutions were equalised as now: of others a ReLU that served several
# places was taken for its first alone.
PAIRS_ALONE = ("resnet18", "mobilenet_v2", "tf_efficientnet_lite0", "test_efficientnet")
# Language models whose queries and keys have layers of their own; AWQ cut those of others before
# version 2.
APART = ("smollm2_135m", "tiny_llama", "tiny_opt")
# Of the timm models whose resize is the same rounded and floored, as it is since version 2. Those
# of SAME_SIZE crop the centre, as all did before version 3; before version 4 all were tested at the
# size that they were trained at.
SAME_RESIZE = ("tf_efficientnet_lite0",)


def with_versions(node: dict[str, Any]) -> dict[str, Any]:
    """Return settings with the version of each class that has another than its first."""
    found = {k: with_versions(v) if isinstance(v, dict) else v for k, v in node.items()}
    task, activation, model = (found.get(name) or {} for name in ("task", "activation", "model"))
    if activation.get("_target_") == "StaticPerTensor":
        gated = model["_target_"] == "VisionModel" and model["name"] not in MODULES_ALONE
        if gated or task["_target_"] in PADDED:
            activation[VERSION] = 2
    if model.get("equalize") and model.get("name") not in PAIRS_ALONE:
        model[VERSION] = 2
    recon, allocation = found.get("recon") or {}, found.get("allocation") or {}
    if recon.get("precision") == "tf32" and recon.get("e2e_iters"):  # was float32 end to end
        recon[VERSION] = 2
    if allocation and task["_target_"] in PADDED:  # padding on the left was learned from
        allocation[VERSION] = allocation.get(VERSION, 1) + 1
    if activation.get("kv_bits") and model.get("leave"):  # what it named had no quantized cache
        activation[VERSION] = activation.get(VERSION, 1) + 1
    transform = found.get("transform") or {}
    cuts = transform.get("_target_") == "AWQ" and transform["clip"]
    if cuts and model.get("name") not in APART:
        transform[VERSION] = 2
    method = found.get("quant") or {}
    if method.get("_target_") == "LRQ" and recon.get("precision") == "tf32":  # so was its divisor
        method[VERSION] = 2
    if (version := max(_version_of_images(task, model), _version_of_text(task))) > 1:
        task[VERSION] = version
    own = VERSIONS.get(str(node.get("_target_")))
    return found if own is None else {**found, VERSION: own}


def _version_of_images(images: dict[str, Any], model: dict[str, Any]) -> int:
    """Return the version of how a run's images are resized and cropped."""
    if images.get("_target_") != "ImageNet" or model.get("library") != "timm":
        return 1
    given = images.get("preprocessing") or {}
    own = given.get("resize") is None
    if model.get("name") not in SAME_SIZE:
        return 4 if own or given.get("crop") is None else 3
    return 2 if own and model.get("name") not in SAME_RESIZE else 1


def _version_of_text(text: dict[str, Any]) -> int:
    """Return the version of how a text becomes one string.

    Local files of rows that are stripped on the hub stood as they were before version 2.
    """
    corpus, protocol = text.get("corpus") or {}, text.get("protocol") or {}
    is_file = protocol.get("name") == "file" and corpus.get("local") is not None
    return 2 if is_file and corpus.get("strip") else 1
