"""A CuPy without a GPU: NumPy behind a wrapper that behaves as a device array must.

Not an ndarray subclass, because NumPy and scikit-learn take those without a sound. It refuses to
become NumPy's implicitly and to mix with NumPy arrays, counts every host synchronisation, and
checks kernel launches against the signatures in the CUDA source. The kernels themselves are run
by their NumPy twins in `twins`.
"""

from __future__ import annotations

import collections
import math
import re
import time
import types
from typing import Any

import numpy as np
import twins

# What the library may use; every name is checked against the real CuPy where that installs.
FUNCTIONS = """
abs add arange argmax argmin argsort array asarray ascontiguousarray broadcast_to clip concatenate
copyto cos cumsum diag diagonal divide einsum empty empty_like exp expm1 eye flatnonzero full
full_like imag isfinite less log log1p logaddexp matmul maximum may_share_memory median minimum
moveaxis multiply negative ones ones_like outer partition real repeat searchsorted sign sort sqrt
square stack subtract take take_along_axis tanh tile trace tril triu where zeros zeros_like
""".split()
FFT = "irfft irfft2 rfft rfft2".split()  # in its module ``fft``
LINALG = "cholesky eigh inv pinv qr slogdet solve svd".split()  # in its module ``linalg``
STRIDES = ["as_strided"]  # in its module ``lib.stride_tricks``
_FROM_HOST = {"array", "asarray", "ascontiguousarray"}


class Counter:
    """Host synchronisations so far, bytes that were page-locked, and what was launched: every
    function, method and operator that computes counts as one kernel, views and new memory as none.
    """

    syncs = 0
    pinned = 0
    launches: collections.Counter[str] = collections.Counter()
    flops = 0.0  # of products


PRODUCTS = {"matmul", "dot", "imatmul", "rmatmul"}
# What only looks at an array or reserves memory.
_FREE = {
    "broadcast_to", "diagonal", "empty", "empty_like", "imag", "may_share_memory", "moveaxis",
    "ravel", "real", "reshape", "transpose", "as_strided", "asarray", "array",
}  # fmt: skip
_IF_COPIED = {"ascontiguousarray", "astype"}


def small_launches() -> int:
    """Launches so far that are no matrix products."""
    return sum(n for name, n in Counter.launches.items() if name not in PRODUCTS)


class _Pinned(bytearray):
    """Page-locked memory: copies from it are under way until an event after them has passed."""


def _alloc_pinned_memory(size: int) -> _Pinned:
    Counter.pinned += size
    return _Pinned(size)


_under_way: dict[int, ndarray] = {}


def _is_pinned(x: Any) -> bool:
    while isinstance(x, np.ndarray):
        x = x.base
    return isinstance(x, _Pinned)


class _Event:
    """The time at which the host came by, and the copies that were under way."""

    def __init__(self, disable_timing: bool = False) -> None:
        self._before: list[ndarray] = []

    def record(self) -> None:
        self.at = time.perf_counter()
        self._before = list(_under_way.values())

    def synchronize(self) -> None:
        """The copies arrive now, whatever was written to their sources since."""
        for array in self._before:
            if _under_way.pop(id(array), None) is not None:
                array._host = array._host.copy()


def _sync() -> None:
    Counter.syncs += 1


def _count(name: str, result: Any, args: tuple[Any, ...] = ()) -> None:
    """One launch, unless nothing was computed."""
    if name in _FREE or (name in _IF_COPIED and any(_shares(result, a) for a in args)):
        return
    Counter.launches[name] += 1


def _count_product(left: Any, right: Any, result: Any) -> None:
    Counter.flops += 2.0 * left.shape[-1] * np.size(result)


def _shares(result: Any, array: Any) -> bool:
    return isinstance(array, np.ndarray) and np.may_share_memory(result, array)


class Linalg:
    """CuPy's private module of products: the setting, and cublasGemmEx as it wraps it."""

    COMPUTE_TYPE_DEFAULT, COMPUTE_TYPE_TF32 = 1, 7
    kind = COMPUTE_TYPE_DEFAULT

    @classmethod
    def get_compute_type(cls, dtype: Any) -> int:
        assert np.dtype(dtype) == np.float32
        return cls.kind

    @classmethod
    def set_compute_type(cls, dtype: Any, kind: int) -> None:
        assert np.dtype(dtype) == np.float32
        cls.kind = kind

    @staticmethod
    def tensordot_core_v11(
        turn_a: int,
        turn_b: int,
        m: int,
        n: int,
        k: int,
        a: Any,
        lda: int,
        b: Any,
        ldb: int,
        *out: Any,
    ) -> None:
        """c = op(a) op(b) of matrices by columns, of inputs in float16 and sums in float32."""
        c, ldc = out

        def matrix(array: Any, rows: int, columns: int, lead: int) -> np.ndarray:
            assert array.flags.c_contiguous and lead >= rows
            flat = array._host.reshape(-1)
            assert flat.size >= lead * (columns - 1) + rows
            strides = (flat.itemsize, lead * flat.itemsize)
            return np.lib.stride_tricks.as_strided(flat, (rows, columns), strides)

        assert a.dtype == b.dtype == np.float16 and c.dtype == np.float32
        Counter.launches["matmul"] += 1
        Counter.flops += 2.0 * m * n * k
        left = matrix(a, *((k, m) if turn_a else (m, k)), lda).astype(np.float32)
        right = matrix(b, *((n, k) if turn_b else (k, n)), ldb).astype(np.float32)
        into = matrix(c, m, n, ldc)
        into[...] = (left.T if turn_a else left) @ (right.T if turn_b else right)


def to_tf32(a: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest number of 10 bits of mantissa."""
    bits = np.ascontiguousarray(a).view(np.uint32).astype(np.uint64)
    bits += 0x0FFF + ((bits >> np.uint64(13)) & np.uint64(1))
    return (bits & np.uint64(0xFFFFE000)).astype(np.uint32).view(np.float32)


def _at_precision(name: str, args: Any) -> Any:
    """The inputs of a product of two matrices as the setting has them."""
    if name.strip("_") != "matmul" or Linalg.kind != Linalg.COMPUTE_TYPE_TF32:
        return args
    plain = all(a.ndim == 2 and a.dtype == np.float32 for a in args)
    return tuple(map(to_tf32, args)) if plain else args


class OutOfMemoryError(MemoryError):
    """As CuPy's, by name and words."""


OutOfMemoryError.__module__ = "cupy.cuda.memory"


class Memory:
    """How large an array may be, and what the device and the pool say that they have."""

    largest: float = math.inf
    total, free, pooled = 1 << 34, 1 << 34, 0


class _Device:
    compute_capability = "80"

    def synchronize(self) -> None:
        _sync()

    def __init__(self, id: int | None = None) -> None:
        self.id = 0 if id is None else id
        self.mem_info = (Memory.free, Memory.total)

    def __enter__(self) -> _Device:
        return self

    def __exit__(self, *args: Any) -> None:
        return None


def _unwrap(value: Any, host: bool = False) -> Any:
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray) and not host:
        raise TypeError(f"Unsupported type {type(value)}: a NumPy array met a device array")
    if isinstance(value, list | tuple):
        return type(value)(_unwrap(v, host) for v in value)
    return value


def _wrap(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return ndarray(np.asarray(value))
    if isinstance(value, tuple):
        return tuple(_wrap(v) for v in value)
    return value


class ndarray:
    """A device array: see the module's docstring."""

    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: np.ndarray) -> None:
        if host.nbytes > Memory.largest and host.flags.owndata:
            raise OutOfMemoryError(f"Out of memory allocating {host.nbytes:,} bytes")
        self._host = host

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Use .get()")

    device = _Device()
    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: types.SimpleNamespace(c_contiguous=self._host.flags.c_contiguous))
    T = property(lambda self: _wrap(self._host.T))

    def get(self) -> np.ndarray:
        _sync()
        return self._host.copy()

    def item(self) -> Any:
        _sync()
        return self._host.item()

    def __float__(self) -> float:
        _sync()
        return float(self._host)

    def __int__(self) -> int:
        _sync()
        return int(self._host)

    __index__ = __int__

    def __bool__(self) -> bool:
        _sync()
        return bool(self._host)

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> ndarray:
        _count_mask(key)
        found = self._host[_unwrap(key)]
        if not _shares(found, self._host) and found.size:
            _count("getitem", found)
        return _wrap(found)

    def __setitem__(self, key: Any, value: Any) -> None:
        _count_mask(key)
        _count("setitem", self._host)
        self._host[_unwrap(key)] = _unwrap(value)

    def __repr__(self) -> str:
        return f"standin.ndarray(shape={self.shape}, dtype={self.dtype})"


def _count_mask(key: Any) -> None:
    """Indexing by a mask has a result of unknown size, which the host must wait for."""
    for part in key if isinstance(key, tuple) else (key,):
        if isinstance(part, ndarray) and part.dtype == bool:
            _sync()


def _method(name: str) -> Any:
    def method(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        kwargs = {k: _unwrap(v) for k, v in kwargs.items()}
        result = getattr(self._host, name)(*_unwrap(args), **kwargs)
        _count(name, result, (self._host,))
        return _wrap(result)

    return method


def _operator(name: str) -> Any:
    def operator(self: ndarray, other: Any) -> Any:
        host, given = self._host, _unwrap(other)
        if name == "__matmul__":
            host, given = _at_precision(name, (host, given))
        result = getattr(host, name)(given)
        if name == "__matmul__" and result is not NotImplemented:
            _count_product(host, given, result)
        if result is NotImplemented:
            return NotImplemented
        _count(name.strip("_"), result)
        if name.startswith("__i"):
            self._host = result
            return self
        return _wrap(result)

    return operator


METHODS = """
all any argmax argsort astype copy cumsum dot fill max mean min ravel reshape sum trace
transpose var
""".split()
for _name in METHODS:
    setattr(ndarray, _name, _method(_name))
for _name in "add sub mul truediv floordiv mod pow matmul and or xor rshift lshift".split():
    for _prefix in ("", "r", "i"):
        if hasattr(np.ndarray, f"__{_prefix}{_name}__"):
            setattr(ndarray, f"__{_prefix}{_name}__", _operator(f"__{_prefix}{_name}__"))
for _name in "lt le gt ge eq ne".split():
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
for _name in "neg abs invert".split():
    setattr(ndarray, f"__{_name}__", _method(f"__{_name}__"))


class RawModule:
    """Compiled source whose functions check their arguments and run the NumPy twin."""

    def __init__(self, code: str, options: tuple[str, ...] = ()) -> None:
        self.signatures = signatures(code)

    def get_function(self, name: str) -> Any:
        types_ = self.signatures[name]

        def launch(grid: tuple[int], block: tuple[int], args: tuple[Any, ...]) -> None:
            assert len(args) == len(types_), f"{name} takes {len(types_)}, got {len(args)}"
            for (kind, pointer), arg in zip(types_, args, strict=True):
                if pointer:
                    assert isinstance(arg, ndarray) and arg.dtype == kind, (name, kind, arg)
                    assert arg.flags.c_contiguous, f"{name}: an array is not contiguous"
                else:
                    assert isinstance(arg, np.generic) and arg.dtype == kind, (name, kind, arg)
            Counter.launches[name] += 1
            getattr(twins, name)(grid[0] * block[0], *[_unwrap(a) for a in args])

        return launch


_C_TYPES = {"float": "f4", "double": "f8", "u32": "u4", "u64": "u8", "bool": "?"}


def signatures(code: str) -> dict[str, list[tuple[np.dtype[Any], bool]]]:
    """Kernel name → (dtype, is it a pointer) of every argument, read from the CUDA source."""
    code = code.replace("\\\n", " ")
    for macro, names, body in re.findall(r"#define (\w+)\(([^)]*)\)([^\n]*__global__[^\n]*)", code):
        for values in re.findall(rf"^{macro}\((.*)\)$", code, re.MULTILINE):
            text = body
            for name, value in zip(names.split(","), values.split(","), strict=True):
                text = re.sub(rf"\b{name.strip()}\b", value.strip(), text)
            code += f"\n{text}"
    found = {}
    for name, arguments in re.findall(r"__global__ void (\w+)\(([^)]*)\)", code):
        if name != "NAME":
            found[name] = [_argument(a) for a in arguments.split(",")]
    return found


def _argument(text: str) -> tuple[np.dtype[Any], bool]:
    words = text.replace("const", "").replace("*", " * ").split()
    return np.dtype(_C_TYPES[words[0]]), "*" in words


def module() -> types.ModuleType:
    """A fresh module to stand as ``cupy`` in ``sys.modules``."""
    fake = types.ModuleType("cupy")
    fake.ndarray = ndarray  # type: ignore[attr-defined]
    fake.RawModule = RawModule  # type: ignore[attr-defined]
    fake.float32, fake.float64 = np.float32, np.float64  # type: ignore[attr-defined]
    fake.inf = np.inf  # type: ignore[attr-defined]
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: 1, getDeviceProperties=lambda i: {"name": b"stand-in"}
    )
    fake.cuda = types.SimpleNamespace(  # type: ignore[attr-defined]
        is_available=lambda: True,
        runtime=runtime,
        Device=_Device,
        Event=_Event,
        alloc_pinned_memory=_alloc_pinned_memory,
        get_elapsed_time=lambda start, end: 1e3 * (end.at - start.at),
    )
    pool = types.SimpleNamespace(total_bytes=lambda: Memory.pooled)
    fake.get_default_memory_pool = lambda: pool  # type: ignore[attr-defined]
    Linalg.kind = Linalg.COMPUTE_TYPE_DEFAULT
    fake._core = types.SimpleNamespace(_routines_linalg=Linalg)  # type: ignore[attr-defined]
    for name in FUNCTIONS:
        setattr(fake, name, _function(name))
    fft = {name: _function(name, np.fft) for name in FFT}
    fake.fft = types.SimpleNamespace(**fft)  # type: ignore[attr-defined]
    linalg = {name: _function(name, np.linalg) for name in LINALG}
    fake.linalg = types.SimpleNamespace(**linalg)  # type: ignore[attr-defined]
    strides = {name: _function(name, np.lib.stride_tricks) for name in STRIDES}
    fake.lib = types.SimpleNamespace(  # type: ignore[attr-defined]
        stride_tricks=types.SimpleNamespace(**strides)
    )
    return fake


def _function(name: str, module: Any = np) -> Any:
    host = name in _FROM_HOST

    def function(*args: Any, **kwargs: Any) -> Any:
        kwargs = {k: _unwrap(v) for k, v in kwargs.items()}
        if name == "asarray" and _is_pinned(args[0]):
            sent = ndarray(args[0])  # not a copy: it is still under way
            _under_way[id(sent)] = sent
            return sent
        given = _at_precision(name, _unwrap(args, host))
        result = getattr(module, name)(*given, **kwargs)
        if name == "matmul":
            _count_product(*given, result)
        _count(name, result, given)
        if host and isinstance(result, np.ndarray) and any(result is a for a in args):
            result = result.copy()
        return _wrap(result)

    return function
