"""Files of a network as another person may have made them: what they claim is checked first.

No code that comes with a network runs: `trust_remote_code` is False wherever transformers is asked,
attention from a hub is refused, pickles are read as tensors alone. What a configuration claims has
to fit the files beside it before memory is taken for it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flexround.utils.memory import is_shortage
from tasks.language.heads import heads_of

WEIGHTS = (".safetensors", ".bin", ".gguf")
# A byte of a file holds 5 weights at most (GGUF's IQ1_S), and a network makes masks, tables of
# positions and a missing head by itself.
A_BYTE, BESIDES = 8, 2**28
MOST = {r"(num|n)_\w*layers?$": 1024, r"(num|n)_\w*experts\w*$": 4096, "num_labels$": 2**16}
KERNELS = ("attn_implementation", "experts_implementation")
PUT_IN = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # tokens that no text has to spell


@contextmanager
def told(source: str, advice: str = "") -> Iterator[None]:
    """Turn whatever transformers makes of files that are wrong into one line about source.

    Raises:
        ValueError: with advice at its end.
    """
    try:
        yield
    except ImportError as error:
        hint = "pip install -e '.[local-models]'"
        raise ValueError(f"{source}: {_first_line(error)}; {hint}") from error
    except struct.error as error:  # a GGUF file's
        raise ValueError(
            f"{source} can't be loaded: it is damaged or truncated, and claims more than it holds"
        ) from error
    except Exception as error:
        if is_shortage(error):
            raise
        # KeyError and the like say nothing by their text alone.
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{source} can't be loaded: {kind}{_first_line(error)}{advice}") from error


def config_of(where: str, **options: Any) -> Any:
    """Return transformers' configuration of the network at where, a folder or a hub id.

    Raises:
        ValueError: when an adapter lies there, it asks for code of a hub, or counts more than any
            network has; also what transformers refuses, with others of its errors.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
    from transformers.utils.peft_utils import find_adapter_config_file

    if find_adapter_config_file(where, revision=options.get("revision")):
        raise ValueError(
            "an adapter lies with it (adapter_config.json), which is added where peft is installed "
            "and passed over where it is not; give a network that it is merged into"
        )
    stated, _ = PretrainedConfig.get_config_dict(where, trust_remote_code=False, **options)
    if not isinstance(stated, dict):
        raise ValueError("its config.json is no JSON object")
    for name, value in _entries(stated):
        if name.endswith(KERNELS) and not str(value).isidentifier():
            raise ValueError(f"its configuration has {name} {value!r}; code of a hub is not run")
        for pattern, most in MOST.items():
            if isinstance(value, int) and value > most and re.search(pattern, name):
                raise ValueError(f"its configuration has {name} {value}, more than {most}")
    if "gguf_file" in options:  # each reading of such a file takes seconds
        return CONFIG_MAPPING[stated["model_type"]].from_dict(stated)
    return AutoConfig.from_pretrained(where, trust_remote_code=False, **options)


def check_size(auto: Any, config: Any, where: Path) -> None:
    """Check that the network of config can have come out of the files at where, a file or folder.

    Raises:
        ValueError: when it has more weights than they have room for.
    """
    files = [where] if where.is_file() else list(where.iterdir())
    room = sum(file.stat().st_size for file in files if file.suffix in WEIGHTS)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = auto.from_config(config, trust_remote_code=False)
    count = sum(t.numel() for t in (*network.parameters(), *network.buffers()))
    if not 0 <= count <= A_BYTE * room + BESIDES:
        raise ValueError(f"its configuration has {count} weights, its files are {room} bytes")


def _entries(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of everything in values that is no mapping."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _entries(value, str(key))
    elif values is not None:
        yield name, values


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def check_vocabulary(network: nn.Module, tokenizer: Any, source: str) -> None:
    """Check that every token that a text can become has an embedding.

    Special ones may lie past the end, as Gemma 3's for an image does in its models of text alone,
    but for those that the tokenizer itself puts in.

    Raises:
        ValueError: when the tokenizer is another model's.
    """
    embeddings: Any = network.get_input_embeddings()  # type: ignore[operator]
    rows = embeddings.weight.shape[0]
    if len(tokenizer) <= rows:
        return
    added = tokenizer.added_tokens_decoder.items()
    unused = {token for token, what in added if what.special}
    unused -= {getattr(tokenizer, f"{name}_token_id") for name in PUT_IN}
    if any(token >= rows and token not in unused for token in tokenizer.get_vocab().values()):
        raise ValueError(
            f"{source}: the tokenizer has {len(tokenizer)} tokens, the model {rows} embeddings; "
            "they do not belong together"
        )


def check_weights(
    network: nn.Module, report: Mapping[str, Any], source: str, makes_head: bool
) -> None:
    """Check that transformers' report has a weight of source for every one of network.

    With makes_head those of a head may be missing, or another head's.

    Raises:
        ValueError: names some that are not there.
    """
    missing = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    if makes_head:
        drawn = tuple(f"{name}." for name in heads_of(network))
        missing = {name for name in missing if not name.startswith(drawn)}
    if not missing:
        return
    told = f"{source} has no weights for {', '.join(sorted(missing)[:3])}"
    kind = type(network).__name__
    if makes_head:
        raise ValueError(
            f"{told}: only the head of a {kind} may be missing, which fine-tuning makes; give a "
            "whole checkpoint"
        )
    raise ValueError(f"{told}: it is no checkpoint of a {kind}; give a fine-tuned one")
