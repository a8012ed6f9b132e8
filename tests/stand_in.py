"""Stand-in for a GPU: a second device whose tensors are computed on the CPU.

torch lets Python play a backend of its own (PrivateUse1). A tensor of it holds one of the CPU that
does the work, so that values, branches on them and gradients are real and can be compared with the
CPU's to the last bit. As a GPU would, it refuses an operation that mixes its tensors with the
CPU's, and it knows for which ones a program would wait.

It stays in a process that imports this module, so that tests/test_second_device.py starts another
one for the tests that need it.

What it can't show: what only a GPU's own kernels do (other sums, missing operations, autocast), and
the branches that ask for device.type == "cuda".
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from flexround.calibration import activation_cache

_PlainGenerator, _plain_tensor = torch.Generator, torch.tensor
ROOT = Path(__file__).parents[1]
OTHERS = ("tests", ".venv")  # whose lines are not the program's
NAME = "standin"
DEVICE_INDEX = 0
aten = torch.ops.aten

# A scalar of the CPU may meet the device's tensors here, besides in pointwise operations.
TAKE_SCALARS = {aten.masked_fill, aten.masked_fill_, aten.where}
# Indices of the CPU may select from the device's tensors; a GPU waits until it has a copy of them.
TAKE_INDICES = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
COPIES = {aten.copy_, aten._to_copy}
# Their results, or the size of them, are only known once everything before is computed.
WAIT = {
    aten._local_scalar_dense, aten.nonzero, aten.nonzero_numpy, aten.masked_select, aten.equal,
    aten.is_nonzero, aten._unique2, aten.unique_consecutive, aten.unique_dim, aten.bincount,
    aten.repeat_interleave, aten.linalg_cholesky_ex, aten.linalg_eigh,
}  # fmt: skip
# torch makes these empty first, and then of their size.
RESIZE = [
    "arange", "arange.start", "arange.start_step", "linspace", "eye", "eye.m", "randperm",
    "randperm.generator",
]  # fmt: skip


class OnDevice(torch.Tensor):
    """A tensor of the stand-in."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor, requires_grad: bool = False) -> OnDevice:
        """Return raw as a tensor of the stand-in."""
        raw = raw.raw if isinstance(raw, OnDevice) else raw
        made = torch.Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(),
            dtype=raw.dtype, device=device(), requires_grad=requires_grad,
        )  # fmt: skip
        made.raw = raw
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """Return what it holds."""
        return f"OnDevice({self.raw})"

    def __format__(self, spec: str) -> str:
        """Return a number as a tensor of a GPU does."""
        return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)

    @property  # type: ignore[override]
    def data(self) -> Tensor:
        """The tensor without its history."""
        return self.detach()

    @data.setter
    def data(self, values: OnDevice) -> None:
        if type(values) is not OnDevice or values.shape != self.shape:
            raise TypeError("a tensor of the stand-in takes the data of its like alone")
        self.raw = values.raw

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return what func gives, on the stand-in."""
        return _run(func, args, kwargs or {})


class Generator(_PlainGenerator):
    """A generator of the CPU or of the stand-in, where it draws as the CPU's does."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        """Return a generator on device."""
        made = super().__new__(cls, "cpu")
        if torch.device(device).type == NAME:
            with _Seen() as seen:
                torch.empty(1).random_(generator=made)
            _generators.append(seen.generator)
        return made


class _Seen(TorchDispatchMode):
    """Sees a generator as operations do: torch hands them another object than the program has."""

    generator: Any

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.generator = (kwargs or {}).get("generator")
        return args[0] if func._schema.is_mutable else func(*args, **(kwargs or {}))


class _Watch(TorchDispatchMode):
    """Refuses the stand-in's generators for tensors of the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (
            "generator" in kwargs
            and _is_own(kwargs["generator"])
            and not _is_of_device(func, args, kwargs)
        ):
            raise RuntimeError(f"{func}: expected a generator of the cpu, found one of {NAME}")
        return func(*args, **kwargs)


def _is_own(generator: Any) -> bool:
    return any(generator is own for own in _generators)


_generators: list[Any] = []
pinned: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()
_counts: list[Counter[str]] = []
_libraries: list[torch.library.Library] = []


def device() -> torch.device:
    """Return the stand-in as a device."""
    return torch.device(NAME, DEVICE_INDEX)


@contextlib.contextmanager
def used(patch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Yield the device, with all that is checked of a program that computes on it."""
    made = install(patch)
    patch.setattr(activation_cache, "page_locked", page_locked)
    with _Watch():
        yield made
    _generators.clear()


@contextlib.contextmanager
def counting(inside: str) -> Iterator[Counter[str]]:
    """Count, by file and line, what a program waits for in calls of the function inside."""
    found: Counter[str] = Counter()
    _counts.append(found)
    found.inside = inside  # type: ignore[attr-defined]
    try:
        yield found
    finally:
        _counts.remove(found)


def _register() -> None:
    """Make the device known to torch, before autograd counts the devices at its first pass."""
    if torch._C._get_privateuse1_backend_name() != NAME:
        _setup_privateuseone_for_python_backend(NAME, _Module())
        every = torch.library.Library("_", "IMPL")
        every.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")
        own = torch.library.Library("aten", "IMPL")
        for name in RESIZE:
            packet, _, overload = name.partition(".")
            func = getattr(getattr(aten, packet), overload or "default")
            own.impl(name, lambda *a, func=func, **k: _run(func, a, k), "PrivateUse1")
        _libraries.extend((every, own))


def install(patch: pytest.MonkeyPatch) -> torch.device:
    """Have the device in this process from now on, and its generators until patch is undone."""
    # It remembers torch's own functions, which torch.device contexts look for.
    _device_constructors()
    patch.setattr(torch, "Generator", Generator)
    patch.setattr(torch, "tensor", _tensor)
    return device()


def page_locked(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an empty tensor of the CPU that the stand-in reads without waiting."""
    made = torch.empty(shape, dtype=dtype)
    pinned[id(made)] = made
    return made


def _tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
    """Return torch.tensor's result, which of itself does not know a backend of Python's."""
    if device is not None and torch.device(device).type == NAME:
        return _plain_tensor(data, **options).to(device)
    return _plain_tensor(data, device=device, **options)


class _Module:
    """What torch asks of a backend."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return DEVICE_INDEX

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Do nothing: nothing draws without a generator."""

    def get_rng_state(self, *_: Any) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, *_: Any) -> None:
        """Do nothing, likewise."""

    def device_count(self) -> int:
        return 1

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def _is_of_device(func: Any, args: Any, kwargs: Any) -> bool:
    leaves = tree_leaves((args, kwargs))
    return any(
        isinstance(x, OnDevice) or (isinstance(x, torch.device) and x.type == NAME) for x in leaves
    )


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """Return what func gives of the tensors inside, on the stand-in where a GPU would have it."""
    leaves: list[Tensor] = []
    inner = [_inside(x, leaves) for x in args]
    named = {name: _inside(x, leaves) for name, x in kwargs.items()}
    packet = func.overloadpacket
    _check(func, packet, args, kwargs, leaves)
    if _counts:
        _wait(packet, args, kwargs)
    result = func(*inner, **named)
    if packet is aten._to_copy:
        target = kwargs.get("device")
        return OnDevice(result) if target is None or target.type == NAME else result
    if packet is aten.copy_:
        return args[0]
    return _outside(result, func, leaves)


def _inside(x: Any, leaves: list[Tensor]) -> Any:
    """Return x with the tensors inside of the stand-in's; adds all tensors of x to leaves."""
    if isinstance(x, Tensor):
        leaves.append(x)
        return x.raw if isinstance(x, OnDevice) else x
    if isinstance(x, torch.device):
        return torch.device("cpu")
    if isinstance(x, list | tuple):
        return type(x)(_inside(part, leaves) for part in x)
    return x


def _outside(x: Any, func: Any, leaves: list[Tensor]) -> Any:
    """Return a result on the stand-in; what was written into is the argument that it was."""
    if isinstance(x, Tensor):
        if func._schema.is_mutable:
            for leaf in leaves:
                if isinstance(leaf, OnDevice) and leaf.raw is x:
                    assert leaf.shape == x.shape, f"{func} has given its argument another shape"
                    return leaf
        return OnDevice(x)
    if isinstance(x, list | tuple):
        return type(x)(_outside(part, func, leaves) for part in x)
    return x


def _check(func: Any, packet: Any, args: Any, kwargs: Any, leaves: list[Tensor]) -> None:
    """Refuse what a GPU refuses."""
    generator = kwargs.get("generator")
    if generator is not None and not _is_own(generator):
        raise RuntimeError(f"{func}: expected a generator of {NAME}, found one of the cpu")
    others = [x for x in leaves if not isinstance(x, OnDevice)]
    if not others or packet in COPIES:
        return
    if packet in TAKE_INDICES and isinstance(args[0], OnDevice):
        taken = [x for x in args[1] if x is not None]
        others = [x for x in others if not any(x is index for index in taken) and x.dim()]
    written = func._schema.is_mutable and not isinstance(args[0], OnDevice)
    if (torch.Tag.pointwise in func.tags or packet in TAKE_SCALARS) and not written:
        others = [x for x in others if x.dim()]
    if others:
        raise RuntimeError(
            f"{func}: expected all tensors on one device, found {NAME} and a cpu tensor of shape "
            f"{list(others[0].shape)}"
        )


def _wait(packet: Any, args: Any, kwargs: Any) -> None:
    """Count the operation where a program would wait for it."""
    waiting = packet in WAIT
    if packet in TAKE_INDICES:
        # A copy of the CPU's indices; of a mask, the number of places in it.
        waiting = any(
            not isinstance(x, OnDevice) or x.dtype in (torch.bool, torch.uint8)
            for x in args[1] if x is not None
        )  # fmt: skip
    if packet is aten.copy_:
        target, source = args[:2]
        far = isinstance(target, OnDevice) != isinstance(source, OnDevice)
        free = (kwargs.get("non_blocking") or args[2:3] == (True,)) and id(source) in pinned
        waiting = far and not free
    if packet is aten._to_copy:
        target = kwargs.get("device")
        waiting = target is not None and target.type != NAME
    if waiting:
        _count(packet)


def _count(packet: Any) -> None:
    frame: FrameType | None = sys._getframe(1)
    place, names = None, set()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] not in OTHERS:
            names.add(frame.f_code.co_name)
            place = place or f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    for found in _counts:
        if found.inside in names:  # type: ignore[attr-defined]
            found[f"{place} {packet}"] += 1


_register()
