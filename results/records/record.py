"""The record of one run: a frozen, typed row, checked when it is written and when it is read."""

from __future__ import annotations

import datetime
import math
import shlex
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from results.records.texts import check_texts

SCHEMA = 2
OLD = (1,)  # their settings have modules and paths, and so their runs other names
SCALARS = ("bits", "act_bits", "kv_bits", "seed")  # settings that tell cells of a table apart
STATUSES = ("ok", "failed")


class OtherSchema(ValueError):
    """A record that another version of this program has written."""


class OldSchema(OtherSchema):
    """A record of a version before, which can be renamed."""


@dataclass(frozen=True)
class Record:
    """What one run was and what it found.

    Attributes:
        run_id: hash of every setting that can change the value.
        value: the main metric of the quantized model; None for a failed run.
        fp_value: the same metric of the full-precision model, None where a run failed before it.
        metrics: everything that the task measured, by name.
        blocks: one entry a unit of reconstruction: name, layers with their bits, error before and
            after, seconds, peak memory in GiB, what the method cost, how the loss fell.
        quantized_share: of the weights in the model's blocks; None where the run failed before it
            was known, and in records from before it was kept.
        left: the weights in the blocks that model.leave has kept in full precision.
        seconds: wall time of the run, with that of units which an attempt before it has finished.
        peak_memory_gib: largest of the blocks' peaks.
        device: cpu, or the GPU's name.
        precision: of the matrix products that a unit was learned by, which recon.precision=auto
            leaves to the device; empty in records from before it was kept.
        processor: the CPU's model and vector instructions, which decide the last bits of its sums.
        threads: of torch on the CPU, which decide them too; None in records from before they were
            kept, as the next two.
        network: the digest of the full-precision network, before any transform.
        finetuning: what finetune.py has noted of the network that it has made: the task, the model,
            the recipe, the seed, digests of the rows and of what it began with. Empty of any other
            network, and in records from before it was kept.
        evaluation_data: the digest of what was measured on; None for a task that does not say.
        evaluation: how the task measured, where it tells that: of lm-eval its version, shots, the
            metric by which each task votes, whether prompts begin with <s>; the text that was read
            for WikiText-2's raw one; whether calibration_images are ImageNet's of train or of val.
        transform: what was done to the network before it was quantized: the transform's name, how
            far a sample's logits moved, what it found. Empty where nothing was done.
        average_bits: the mean of bits over the weights that are quantized; None in records from
            before it was kept, and of runs that failed before it was known.
        bits_per_layer: the bits of each layer where bits_per_layer= or allocation= was given; as
            that option they repeat the run.
        sensitivity: the scores by layer and bits that allocation= has measured and chosen by.
        settings: the composed configuration that run_id is a hash of: classes by their names, files
            and folders by the digest of what they hold.
        places: where the files and folders were that settings have digests of, by dotted name.
        conditions: what else a failed run may have failed for, by name: the code, the packages, the
            options that settings leave out. Empty for a finished one.
        former_ids: what the run was called before `python -m results rekey`.
        error: the one line that a failed run ended with.
        overrides: what the command line said, of which settings were composed; None in records
            from before it was kept.
    """

    run_id: str
    status: Literal["ok", "failed"]
    model: str
    task: str
    task_version: int | None
    quant: str
    bits: int
    seed: int
    metric: str | None
    higher_is_better: bool | None
    value: float | None
    fp_value: float | None
    settings: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    fp_metrics: dict[str, float] = field(default_factory=dict)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    quantized_share: float | None = None
    left: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak_memory_gib: float = 0.0
    device: str = ""
    precision: str = ""
    processor: str = ""
    threads: int | None = None
    network: str | None = None
    finetuning: dict[str, Any] = field(default_factory=dict)
    evaluation_data: str | None = None
    evaluation: dict[str, Any] = field(default_factory=dict)
    transform: dict[str, Any] = field(default_factory=dict)
    average_bits: float | None = None
    bits_per_layer: dict[str, int] = field(default_factory=dict)
    sensitivity: dict[str, dict[str, float]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    started: str = ""
    error: str | None = None
    overrides: list[str] | None = None
    places: dict[str, str] = field(default_factory=dict)
    conditions: dict[str, str] = field(default_factory=dict)
    former_ids: list[str] = field(default_factory=list)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"record {self.run_id}: status {self.status!r} is none of {STATUSES}")
        if self.status == "ok":
            if self.value is None or not math.isfinite(self.value):
                raise ValueError(f"record {self.run_id}: value {self.value} of a finished run")
            if self.metric is None or self.metrics.get(self.metric) != self.value:
                raise ValueError(f"record {self.run_id}: its value is not its metric {self.metric}")
        elif not self.error:
            raise ValueError(f"record {self.run_id}: a failed run without its error")

    @property
    def began(self) -> float:
        """When its run began, in seconds since 1970; 0 where that was not kept."""
        try:
            return datetime.datetime.fromisoformat(self.started).timestamp()
        except ValueError:
            return 0.0

    def summary(self) -> str:
        """Return the run and its result in one line."""
        assert self.value is not None, "only a finished run has a summary"
        text = f"{self.model} {self.task} {self.quant} {self.bits} bit seed {self.seed}: "
        text += f"{self.metric} {self.value:.2f}"
        if self.fp_value is not None:
            text += f" (full precision {self.fp_value:.2f}, {self.value - self.fp_value:+.2f})"
        return text

    def command(self, *more: str) -> str | None:
        """Return the line that makes the record again, with more at its end.

        None where the record does not keep it.
        """
        if self.overrides is None:
            return None
        return shlex.join(["python", "run.py", *self.overrides, *more])

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Record:
        """Return the record that data holds; what has a default may be absent.

        Raises:
            OtherSchema: when the schema is another one, or a field is not known.
            ValueError: when a field is missing, or of another type than it has.
        """
        if not isinstance(data, dict):
            raise ValueError("a record is a JSON object")
        if data.get("schema") in OLD:
            raise OldSchema(f"record of schema {data['schema']}, which names runs otherwise")
        if data.get("schema") != SCHEMA:
            schema = ascii(data.get("schema"))[:20]
            raise OtherSchema(f"record of schema {schema}, this version reads {SCHEMA}")
        known, needed = _names()
        if unknown := data.keys() - known:
            told = ", ".join(sorted(map(ascii, unknown))[:3])
            raise OtherSchema(f"record with fields that this version does not know: {told}")
        if missing := needed - data.keys():
            raise ValueError(f"record without {', '.join(sorted(missing))}")
        held = data["settings"] if isinstance(data["settings"], dict) else {}
        if many := [name for name in SCALARS if isinstance(held.get(name), list | dict)]:
            raise ValueError(f"record with settings.{many[0]}: no single value")
        try:
            return _adapter().validate_python(data)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"record with {first['loc']!a}: {first['msg']}") from error


def parse(data: bytes) -> Record:
    """Return the record that a file's data holds.

    Raises:
        ValueError: when it holds none, or one of another version.
    """
    return checked(from_json(data), data)


def checked(held: Any, data: bytes) -> Record:
    """Return the record that held is, which stands in data, the text that was read.

    Raises:
        ValueError: as parse does.
    """
    check_texts(held, data)
    try:
        return Record.from_json(held)
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error


@cache
def _adapter() -> TypeAdapter[Record]:
    # Made once: making it takes a hundred times as long as checking a record with it.
    return TypeAdapter(Record)


@cache
def _names() -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of all fields, and of those that a record can't be without."""
    needed = {f.name for f in fields(Record) if f.default is f.default_factory is MISSING}
    return frozenset(f.name for f in fields(Record)), frozenset(needed)
