"""A pretend accelerator: tensors that say they live elsewhere and compute on the CPU.

It refuses what an accelerator refuses (operands on two devices, random numbers of another device's generator, float64
that the package asks for, where that is wanted) and counts by line of the package what the host would wait for.
`Pretend` is a context; inside it the device is called `DEVICE` everywhere.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._device import _device_constructors
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
DEVICE = torch.device("cpu")  # the pretend one, once it is registered below
ROOT = f"{Path(__file__).resolve().parents[1]}/"
aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
WAITS = {  # operations whose answer, or whose size, the host needs
    aten._local_scalar_dense.default,
    aten._linalg_check_errors.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
}
INDEXED = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)
FILLS = (aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.where.self)
DOUBLES = (torch.float64, torch.complex128)


class PretendTensor(Tensor):
    """A tensor on the pretend device; `held` has its values, on the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=DEVICE,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _current().run(func, args, kwargs or {})

    def tolist(self) -> Any:
        _current().wait()
        return self.held.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __getitem__(self, index: Any) -> Any:
        listed = index if isinstance(index, tuple) else (index,)
        uploaded = tuple(torch.tensor(part, device=DEVICE) if isinstance(part, list) else part for part in listed)
        return torch._C.TensorBase.__getitem__(self, uploaded if isinstance(index, tuple) else uploaded[0])

    def __repr__(self, *args: Any, **options: Any) -> str:
        return f"PretendTensor({tuple(self.shape)}, {self.dtype})"


class Pretend(TorchDispatchMode):
    """The device, and what happened on it: `waits` of the host and `uploads` to the device, by line of the package."""

    active: list[Pretend] = []

    def __init__(self, double: bool = True) -> None:
        """`double`: whether the device has float64."""
        super().__init__()
        self.double = double
        self.waits: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self._stack = ExitStack()

    def __enter__(self) -> Pretend:
        _register()
        self._stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        self._stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, _overwrites())
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # .data would change the outside alone
        for target, name, made in _replacements():
            self._stack.enter_context(mock.patch.object(target, name, made))
        super().__enter__()
        self.active.append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        self.active.remove(self)
        super().__exit__(*error)
        self._stack.close()

    @contextmanager
    def counted(self) -> Iterator[Counter[str]]:
        """The waits inside a `with` block."""
        before, found = self.waits.copy(), Counter[str]()
        yield found
        found.update(self.waits - before)

    def wait(self) -> None:
        """Notes that the host waits for the device."""
        self.waits[_line()] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """An operation on the CPU, as if some of its tensors lived elsewhere."""
        flat = list(_leaves((*args, *kwargs.values())))
        there = [t for t in flat if isinstance(t, PretendTensor)]
        asked = kwargs.get("device")
        outside = torch.device(asked).type == NAME if asked is not None else bool(there)
        if func is aten.copy_.default or (func is aten._to_copy.default and asked is None):
            outside = isinstance(args[0], PretendTensor)
        if not there and not outside:
            return func(*args, **kwargs)
        here = [t for t in flat if isinstance(t, Tensor) and not isinstance(t, PretendTensor)]
        self._check(func, args, flat, here, there, outside)
        self._count(func, args, there, outside)
        named = {name: _plain(value) for name, value in kwargs.items()}
        if asked is not None and outside:
            named["device"] = torch.device("cpu")
        if named.get("pin_memory"):
            named["pin_memory"] = False
        out = func(*_plain(args), **named)
        if torch.Tag.inplace_view in func.tags:
            with no_dispatch():
                func(*args, **kwargs)  # the form that is shown follows that of the values
        written = _written(func, args, kwargs) if func._schema.is_mutable else None
        if written is not None:
            return written
        return self._moved(out) if outside else out

    def _moved(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._moved(one) for one in value)
        if not isinstance(value, Tensor):
            return value
        if value.dtype in DOUBLES and not self.double and not _frame()[1]:
            raise TypeError(f"the device has no float64, asked for at {_line()}")
        return PretendTensor(value)

    def _check(
        self, func: Any, args: Any, flat: list[Any], here: list[Tensor], there: list[Any], outside: bool
    ) -> None:
        if outside and any(isinstance(one, torch.Generator) and one.device.type == "cpu" for one in flat):
            raise RuntimeError(f"{func} got a generator of the CPU for a tensor on {DEVICE} at {_line()}")
        if not (there and here) or func in COPIES or "new_" in func._schema.name or "_like" in func._schema.name:
            return
        single = all(t.ndim == 0 for t in here)  # numbers may come from the CPU, as on CUDA
        into = isinstance(args[0], PretendTensor)
        if (func in INDEXED and into) or (single and (torch.Tag.pointwise in func.tags or func in FILLS)):
            return
        shapes = [tuple(t.shape) for t in here]
        raise RuntimeError(f"{func} got tensors of shape {shapes} on the CPU and others on {DEVICE} at {_line()}")

    def _count(self, func: Any, args: Any, there: list[Any], outside: bool) -> None:
        masks = func in INDEXED and any(i is not None and i.dtype == torch.bool for i in args[1])
        if there and (func in WAITS or masks):
            self.wait()
        if func in COPIES:
            source = args[1] if func is aten.copy_.default else args[0]
            if isinstance(source, PretendTensor) and not outside:
                self.wait()
            elif outside and not isinstance(source, PretendTensor):
                self.uploads[_line()] += 1


def _leaves(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _leaves(value)
        else:
            yield value


def _plain(value: Any) -> Any:
    """The arguments of an operation with what the tensors of the device hold in their place."""
    if isinstance(value, PretendTensor):
        return value.held
    return type(value)(_plain(one) for one in value) if isinstance(value, (list, tuple)) else value


def _current() -> Pretend:
    if not Pretend.active:
        raise RuntimeError("a tensor of the pretend device is used outside of it")
    return Pretend.active[-1]


def _overwrites() -> bool:
    """Whether moving a module makes new parameters."""
    return bool(torch.__future__.get_overwrite_module_params_on_conversion())


def _register() -> None:
    """The device's name, once in a process."""
    global DEVICE
    if DEVICE.type == "cpu":
        _device_constructors()  # remembered for ever, so not while they are replaced
        if not hasattr(torch, NAME):
            _setup_privateuseone_for_python_backend(NAME)
        getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]  # recomputing asks
        DEVICE = torch.device(NAME, 0)


def _written(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """The arguments that an operation changes and gives back; None where it gives back something new."""
    results = [r.alias_info for r in func._schema.returns]
    if not results or not all(alias is not None and alias.is_write for alias in results):
        return None
    found = []
    for alias in results:
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.before_set == alias.before_set:
                found.append(args[position] if position < len(args) else kwargs[argument.name])
                break
    return found[0] if len(found) == 1 else tuple(found)


def _line() -> str:
    """The line of the package that is being run, else that of a library."""
    return " in ".join(part for part in _frame()[::-1] if part) or "?"


def _frame() -> tuple[str, str]:
    """(line of the package, line of a library that it called and that is being run; empty without one)."""
    frame, library = sys._getframe(1), ""
    while frame is not None:
        name = frame.f_code.co_filename.replace("/.stamps/types/unproject/", "/")
        if name.startswith(ROOT) and "/site-packages/" not in name and name != __file__:
            return f"{name[len(ROOT) :]}:{frame.f_lineno}", library
        if not library and ("/diffusers/" in name or "/transformers/" in name):
            library = f"{name.split('site-packages/')[-1]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "", library


def _replacements() -> Iterator[tuple[Any, str, Any]]:
    """What torch builds below the level at which a device can be pretended, built above it."""
    tensor, as_tensor, new_tensor, to = torch.tensor, torch.as_tensor, Tensor.new_tensor, Tensor.to
    attention = torch.nn.functional.scaled_dot_product_attention

    def numbered(device: Any) -> Any:
        """The device with its number, without which torch counts it as another one."""
        text = isinstance(device, str) and device.partition(":")[0] == NAME
        return DEVICE if text or (isinstance(device, torch.device) and device.type == NAME) else device

    def made(data: Any, *args: Any, device: Any = None, **options: Any) -> Tensor:
        plain = tensor(data, *args, **options)
        return plain if device is None else plain.to(device)

    def made_as(data: Any, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
        plain = data if isinstance(data, Tensor) else as_tensor(data, dtype=dtype, **options)
        return plain.to(device=device, dtype=dtype)

    def made_like(self: Tensor, data: Any, *args: Any, **options: Any) -> Tensor:
        if not isinstance(self, PretendTensor):
            return new_tensor(self, data, *args, **options)
        return made(data, *args, **{"dtype": self.dtype, "device": self.device, **options})

    def moved(self: Tensor, *args: Any, **options: Any) -> Tensor:
        named = {name: numbered(value) for name, value in options.items()}
        return to(self, *(numbered(one) for one in args), **named)

    def attended(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        answer = _attention if isinstance(query, PretendTensor) else attention
        return answer(query, key, value, *args, **options)

    yield torch, "tensor", made
    yield torch, "as_tensor", made_as
    yield Tensor, "new_tensor", made_like
    yield Tensor, "to", moved
    yield torch.nn.functional, "scaled_dot_product_attention", attended


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q k^T scale) v; as fused kernels do, it wants one dtype."""
    if {key.dtype, value.dtype} != {query.dtype}:
        raise RuntimeError(f"attention of {query.dtype}, {key.dtype} and {value.dtype} at {_line()}")
    weights = (query @ key.transpose(-1, -2)) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(weights.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        weights = weights.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        weights = weights + attn_mask
    return weights.float().softmax(-1).to(query.dtype) @ value
