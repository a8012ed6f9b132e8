"""`python -m scripts.presets`: the defaults of conf/ as flexround/api/presets.json.

`flexround.quantize` has no Hydra to compose them with. What Hydra composes of each method with each
preset of reconstruction is written down here, interpolations left as they stand; a test fails where
the file is stale.
"""

from __future__ import annotations

import json
from typing import Any

from omegaconf import OmegaConf

from experiment import ROOT
from experiment.checks import check_preset
from experiment.composer import Composer
from flexround.utils.atomic_files import write_whole

FILE = ROOT / "flexround" / "api" / "presets.json"
# A network and a task that no schedule of conf/tuned is for, and a language model's conventions.
VISION = ("model=vit_small", "task=imagenet")
LANGUAGE = ("model=hf", "model.source=any")
# Options without a group that decide what is computed.
ROOTS = (
    "bits", "symmetric", "act_bits", "act_stem_bits", "act_head_bits", "act_init_samples",
    "act_ranges_from", "kv_bits", "clipping", "group_size", "seed", "compile", "scale",
)  # fmt: skip
OF_RECON = ("act_stem_bits", "act_head_bits", "act_init_samples", "act_ranges_from")
GROUPS = ("granularity", "grid", "ranges", "activation", "transform")


def presets() -> dict[str, Any]:
    """Return what the file holds."""
    composer = Composer()

    def composed(*overrides: str) -> dict[str, Any]:
        cfg, choices = composer.composed(overrides)
        found: Any = OmegaConf.to_container(cfg, resolve=False)
        return found | {"choices": dict(choices)}

    found: dict[str, Any] = {"root": {n: v for n, v in composed(*VISION).items() if n in ROOTS}}
    for group in GROUPS:
        found[group] = {
            name: {
                "node": (cfg := composed(*VISION, f"{group}={name}"))[group],
                "idle": {k: v for k, v in cfg["idle"].items() if k.split(".")[0] == group},
            }
            for name in _members(group)
        }
    plain = composed(*VISION)
    for name, entry in found["grid"].items():
        entry |= _brought(composed(*VISION, f"grid={name}"), plain)
    found["methods"] = {name: _method(composed, name) for name in _members("quant")}
    found["kinds"] = {"vision": _kind(composed(*VISION)), "language": _kind(composed(*LANGUAGE))}
    return found


def _members(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def _brought(cfg: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """Return the groups of weights that a grid's format says; plain is what it is without one."""
    own = cfg["choices"]["granularity"]
    return {
        "granularity": own if own != plain["choices"]["granularity"] else None,
        "root": {n: cfg[n] for n in ("group_size",) if cfg[n] != plain[n]},
    }


def _kind(cfg: dict[str, Any]) -> dict[str, Any]:
    """Return what a kind of network is quantized by where nothing is said."""
    return {
        "granularity": cfg["choices"]["granularity"],
        "symmetric": cfg["symmetric"],
        "first_last_bits": cfg["model"].get("first_last_bits"),
    }


def _method(composed: Any, name: str) -> dict[str, Any]:
    own = composed(*VISION, f"quant={name}")
    loops = {}
    for recon in _loops(own, name):
        cfg = composed(*VISION, f"quant={name}", f"recon={recon}")
        loops[recon] = {
            "recon": cfg["recon"],
            "root": {n: cfg[n] for n in OF_RECON if cfg[n] != own[n]},
            # Under recon.unit=layer and the like the keys of idle are options, not groups.
            "idle": {k: v for k, v in cfg["idle"].items() if k.split(".")[0] in ("quant", "recon")},
        }
    return {
        "quant": own["quant"],
        "ranges": own["choices"]["ranges"],
        "loop": own["choices"]["recon"],
        "loops": loops,
    }


def _loops(own: dict[str, Any], name: str) -> list[str]:
    """Return the presets of reconstruction that a method takes."""
    if "_partial_" not in own["quant"]:
        return [own["choices"]["recon"]]
    found = []
    for recon in _members("recon"):
        try:
            check_preset(recon, name)
        except ValueError:  # it has settings for other methods
            continue
        if recon != "solve":
            found.append(recon)
    return found


def text() -> str:
    """Return the file as text: a line a preset, so that a change shows what it changes."""
    parts = []
    for part, entries in presets().items():
        lines = [f"  {json.dumps(name)}: {_entry(entry)}" for name, entry in entries.items()]
        parts.append(f" {json.dumps(part)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _entry(entry: Any) -> str:
    """Return an entry in a line; one with loops has a line each of them."""
    if not isinstance(entry, dict) or "loops" not in entry:
        return json.dumps(entry)
    rest = {name: value for name, value in entry.items() if name != "loops"}
    loops = [f"   {json.dumps(name)}: {json.dumps(loop)}" for name, loop in entry["loops"].items()]
    return json.dumps(rest)[:-1] + ', "loops": {\n' + ",\n".join(loops) + "}}"


if __name__ == "__main__":
    write_whole(FILE, text().encode())
