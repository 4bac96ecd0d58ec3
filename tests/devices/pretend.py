"""A pretended GPU: tensors that hold CPU data and report the device cuda:0.

It shows on any machine, without a GPU, where code mixes devices, waits for the device, or copies to it. Values,
gradients and optimizer steps are those of the CPU. Use the fixture `gpu`:

    def test_my_sampler(gpu):
        denoiser = my_denoiser().to("cuda")  # factories, .to("cuda") and torch.Generator("cuda") work
        gpu.reset()
        x = my_sampler(denoiser, torch.zeros(4, dtype=torch.long))  # a CPU argument, as a user would give it
        assert x.device.type == "cuda"
        assert gpu.syncs <= 10, gpu.report()  # what waited for the device, by source line

- An operation on tensors of both devices raises RuntimeError, as CUDA does. Allowed, as in CUDA: a CPU scalar (ndim 0)
  beside device tensors, and a CPU index into a device tensor, which counts as a copy.
- `gpu.syncs`: how often the host waited: a value read (`float`, `bool`, `.item()`, `.tolist()`), a copy to the host, a
  result whose size depends on values (`nonzero`, boolean indices).
- `gpu.copies`: how many tensors were copied from the host to the device.
- Both are counted by line of `src/ornstein`; `gpu.report()` prints them.
- `gpu.without_float64()`: from then on the device has no float64, as MPS: an operation with such a result raises.

The fixture compiles `pretend_cuda.cpp` once (g++, a few seconds, kept in the temporary folder); without a compiler, or
where PyTorch has a real CUDA, the tests are skipped and say so.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
_SOURCE = Path(__file__).with_name("pretend_cuda.cpp")

aten = torch.ops.aten
_READS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default, aten.item.default}
_SIZES = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten.unique_dim.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
}
_INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
_COPIES = {aten._to_copy.default, aten.copy_.default}


class PretendedTensor(torch.Tensor):
    """A tensor on the pretended device; `inner` is its data on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendedTensor:
        self = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
        )
        self.inner = inner
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert _active is not None, "a tensor of the pretended device outside the fixture `gpu`"
        return _active.run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"PretendedTensor({self.inner})"

    def tolist(self) -> Any:
        assert _active is not None
        _active.waits["tolist " + _line()] += 1
        return self.inner.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert cuda:0 device type tensor to numpy, at {_line()}")

    __array__ = numpy


_Generator = torch.Generator
# by their C++ objects: PyTorch wraps one in another Python object on its way through an operation
_generators: dict[int, torch.Generator] = {}


class PretendedGenerator(_Generator):
    """What torch.Generator("cuda") is: the CPU's generator, refused beside CPU tensors."""

    def __init__(self) -> None:
        _generators[self._cdata] = self  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def device(self) -> torch.device:
        return DEVICE


class _Generators(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _Generator)

    def __call__(cls, device: torch.device | str = "cpu") -> torch.Generator:
        return PretendedGenerator() if torch.device(device).type == DEVICE.type else _Generator(device)


class _GeneratorOfDevice(metaclass=_Generators):
    """In the place of torch.Generator: one for each device."""


class PretendedGPU(TorchDispatchMode):
    """The mode in which "cuda" is the pretended device, and what it has counted; see the module."""

    _mode_key = torch._C._TorchDispatchModeKey.FAKE  # pyright: ignore[reportAttributeAccessIssue]

    def __init__(self) -> None:
        super().__init__()
        self.float64 = True
        self.reset()

    def without_float64(self, monkeypatch: Any) -> None:
        """Have no float64, and have Ornstein know."""
        from ornstein import devices

        self.float64 = False
        monkeypatch.setattr(devices, "_WITHOUT_FLOAT64", {DEVICE.type})

    def reset(self) -> None:
        """Forget what was counted."""
        self.waits: Counter[str] = Counter()
        self.arrivals: Counter[str] = Counter()

    @property
    def syncs(self) -> int:
        return self.waits.total()

    @property
    def copies(self) -> int:
        return self.arrivals.total()

    def report(self) -> str:
        """The counts by source line, the most frequent first."""
        lines = [f"{self.syncs} syncs, {self.copies} copies to the device"]
        for name, counter in (("sync", self.waits), ("copy", self.arrivals)):
            lines += [f"  {count:4d} {name}: {where}" for where, count in counter.most_common()]
        return "\n".join(lines)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One operation of PyTorch on the data behind the pretended tensors, counted and checked."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        pretended = any(isinstance(t, PretendedTensor) for t in tensors)
        if pretended:
            self._count(func, args)
            if func not in _COPIES:
                self._check(func, args, tensors)
        wanted = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        there = pretended if wanted is None else wanted.type == DEVICE.type
        if func is aten.copy_.default:
            there = isinstance(args[0], PretendedTensor)
            self._count_copy(isinstance(args[1], PretendedTensor), there)
        elif func is aten._to_copy.default and wanted is not None:
            self._count_copy(isinstance(args[0], PretendedTensor), there)
        inner_args, inner = tree_map(_inner, args), {k: self._here(v, there) for k, v in kwargs.items()}
        if wanted is not None:
            inner["device"] = torch.device("cpu")
        inner.pop("pin_memory", None)
        out = func(*inner_args, **inner)
        if func._schema.is_mutable:
            if "out" in kwargs:
                return kwargs["out"]
            if func._schema.name.endswith("_"):
                return args[0] if func._schema.returns else None
        if (
            there
            and not self.float64
            and any(
                isinstance(each, Tensor) and each.dtype in (torch.float64, torch.complex128)
                for each in tree_leaves(out)
            )
        ):
            raise TypeError(f"this device has no float64: {func} at {_line()}")
        return tree_map(_pretended, out) if there else out

    def _here(self, value: Any, there: bool) -> Any:
        if isinstance(value, _Generator) and there != (value._cdata in _generators):  # pyright: ignore[reportAttributeAccessIssue]
            wanted, other = (DEVICE.type, "cpu") if there else ("cpu", DEVICE.type)
            raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{other}', at {_line()}")
        return tree_map(_inner, value)

    def _count(self, func: Any, args: Any) -> None:
        if func in _READS:
            self.waits[_line()] += 1
        elif func in _SIZES:
            self.waits[f"{func} {_line()}"] += 1
        elif func in _INDEXED:
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    self.waits[f"boolean index {_line()}"] += 1

    def _count_copy(self, from_device: bool, to_device: bool) -> None:
        if from_device and not to_device:
            self.waits[f"copy to the host {_line()}"] += 1
        elif to_device and not from_device:
            self.arrivals[_line()] += 1

    def _check(self, func: Any, args: Any, tensors: list[Tensor]) -> None:
        """Raise where CUDA would: a CPU tensor beside one of the device."""
        indexed = func in _INDEXED
        if indexed and not isinstance(args[0], PretendedTensor):
            raise RuntimeError(f"indices should be on the same device as the indexed tensor (cpu), at {_line()}")
        for t in tensors:
            if isinstance(t, PretendedTensor) or t.ndim == 0:
                continue
            if not indexed:
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found cuda:0 and cpu: {func} at {_line()}"
                )
            self.arrivals[f"index {_line()}"] += 1


_active: PretendedGPU | None = None
_library: Any = None


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, PretendedTensor) else value


def _pretended(value: Any) -> Any:
    if not isinstance(value, Tensor) or isinstance(value, PretendedTensor):
        return value
    return PretendedTensor(value.resolve_conj().resolve_neg())


def _line() -> str:
    """The innermost line of Ornstein that is being run, else the innermost of the tests."""
    test, frame = "?", sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if f"{os.sep}ornstein{os.sep}" in name:
            return f"{name.rsplit(f'{os.sep}ornstein{os.sep}', 1)[1]}:{frame.f_lineno}"
        if test == "?" and f"{os.sep}tests{os.sep}" in name and name != __file__:
            test = f"{Path(name).name}:{frame.f_lineno}"
        frame = frame.f_back
    return test


def build(folder: Path) -> str | None:
    """Compile and load the guard; None, or the reason why the pretended GPU is not available.

    To be called before the first backward pass of the process: the autograd engine counts the devices then.
    """
    global _library
    if torch.version.cuda is not None or torch.version.hip is not None:
        return "PyTorch has a real CUDA here: a pretended one cannot stand beside it"
    if sys.platform != "linux" or shutil.which("g++") is None:
        return "the pretended GPU needs Linux and g++ to compile tests/devices/pretend_cuda.cpp"
    libraries = Path(torch.__file__).parent / "lib"
    include = Path(torch.__file__).parent / "include"
    library = folder / f"pretend_cuda_{torch.__version__}_{int(_SOURCE.stat().st_mtime)}.so"
    if not library.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = library.with_name(f".{library.name}.{os.getpid()}")
        command = ["g++", "-shared", "-fPIC", "-O1", "-std=c++20", str(_SOURCE), "-o", str(partial)]
        command += [f"-I{include}", f"-I{include / 'torch/csrc/api/include'}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"pretend_cuda.cpp does not compile against this PyTorch: {done.stderr.strip()[-500:]}"
        partial.replace(library)
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(libraries / name), mode=ctypes.RTLD_GLOBAL)
    _library = ctypes.CDLL(str(library))
    return None


@contextmanager
def pretended_gpu() -> Iterator[PretendedGPU]:
    """The pretended GPU; within it torch.cuda says that there is one. `build` must have returned None."""
    global _active
    torch._C._set_only_lift_cpu_tensors(True)  # pyright: ignore[reportAttributeAccessIssue]
    # a parameter cannot become another kind of tensor in place: Module.to replaces it
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    gpu = PretendedGPU()
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: "pretended GPU",
        "is_bf16_supported": lambda including_emulation=True: True,
        "synchronize": lambda device=None: None,
        "_lazy_init": lambda: None,
        "default_generators": (PretendedGenerator(),),
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        _library.pretend_cuda(1)
        stack.callback(_library.pretend_cuda, 0)
        stack.enter_context(mock.patch.object(torch, "Generator", _GeneratorOfDevice))
        stack.enter_context(gpu)
        _active = gpu
        try:
            yield gpu
        finally:
            _active = None
            _generators.clear()
            torch.__future__.set_overwrite_module_params_on_conversion(False)
            torch._C._set_only_lift_cpu_tensors(False)  # pyright: ignore[reportAttributeAccessIssue]
