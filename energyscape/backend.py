"""Where arrays live: the namespace of an array, the device of a fit, and addressed randomness.

One code base serves NumPy and CuPy: numeric code asks `namespace(x)` for the module that made
``x``. This is the only file that imports CuPy, and it does so at the first use of a GPU, never at
import. Randomness is *addressed, not stored*: `stream(seed, purpose, step)` is the same stream
whenever it is asked for, so that a checkpoint needs no generator state.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import importlib.util
import logging
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from energyscape.errors import DeviceError

Array = Any  # numpy.ndarray or cupy.ndarray: no type holds both, nor is CuPy always there
_log = logging.getLogger("energyscape")


# ---------------------------------------------------------------- namespaces and devices


def is_gpu_array(x: Any) -> bool:
    """Whether ``x`` is a CuPy array; never imports CuPy (who holds such an array has done so)."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(x, cupy.ndarray)


def namespace(x: Array) -> Any:
    """The array module that made ``x``: ``numpy`` or ``cupy``."""
    return sys.modules["cupy"] if is_gpu_array(x) else np


def to_host(x: Array) -> np.ndarray:
    """``x`` as a NumPy array; the same object if it is one (a copy over the bus otherwise)."""
    return x.get() if is_gpu_array(x) else np.asarray(x)


def to_device(x: Array, device: str) -> Array:
    """``x`` on ``device`` (``"cpu"`` or ``"cuda:i"``); the same object if it is there already."""
    if device == "cpu":
        return to_host(x)
    cupy = _cupy()
    if is_gpu_array(x) and x.device.id == _index(device):
        return x
    with on_device(device):
        return cupy.asarray(x)


def empty_for_copies(shape: tuple[int, ...], dtype: Any, device: str) -> np.ndarray:
    """Memory on the host, page-locked where it is to be copied to a GPU, so that `send` need not
    wait."""
    if device == "cpu":
        return np.empty(shape, dtype)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    with on_device(device):
        # At least a byte: an array over no memory at all cannot be made.
        memory = _cupy().cuda.alloc_pinned_memory(max(1, size))
    return np.ndarray(shape, dtype, memory)


def send(x: np.ndarray, device: str) -> tuple[Array, Callable[[], None]]:
    """A copy of page-locked ``x`` on a GPU that is under way, and what waits for its arrival:
    before that, ``x`` must not change."""
    with on_device(device):
        copy = _cupy().asarray(x)
        arrival = _cupy().cuda.Event(disable_timing=True)
        arrival.record()
    return copy, arrival.synchronize


def device_of(x: Array) -> str:
    """``"cpu"`` or ``"cuda:i"``, whichever holds ``x``."""
    return f"cuda:{x.device.id}" if is_gpu_array(x) else "cpu"


def on_device(device: str) -> contextlib.AbstractContextManager[Any]:
    """Make ``device`` CuPy's current one within the block; nothing happens for ``"cpu"``."""
    return contextlib.nullcontext() if device == "cpu" else _cupy().cuda.Device(_index(device))


def resolve_device(device: str | None, x: Any) -> str:
    """The device that a fit computes on.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda", "cuda:i"} or None
        "auto" (and None) follow ``x``.
    x : array
        The training data.

    Returns
    -------
    str
        ``"cpu"`` or ``"cuda:i"``.

    Raises
    ------
    ValueError
        For any other string.
    DeviceError
        If a GPU is asked for that cannot be used; the message says why.
    """
    if device in (None, "auto"):
        return device_of(x)
    if device == "cpu":
        return "cpu"
    if not isinstance(device, str) or not (
        device == "cuda" or (device.startswith("cuda:") and device[5:].isdigit())
    ):
        raise ValueError(
            f"device must be 'auto', 'cpu', 'cuda' or 'cuda:0', 'cuda:1', ...; got {device!r}"
        )
    status = gpu_status()
    if not status.usable:
        raise DeviceError(f"device={device!r} was asked for, but {status.reason}")
    index = int(device[5:]) if ":" in device else (x.device.id if is_gpu_array(x) else 0)
    if index >= status.count:
        there = "cuda:0" if status.count == 1 else f"cuda:0 to cuda:{status.count - 1}"
        raise DeviceError(f"device={device!r} was asked for, but there is only {there}")
    return f"cuda:{index}"


@dataclass(frozen=True)
class GpuStatus:
    """What the probe found: ``usable``, the ``reason`` if not, the devices, the first's name."""

    usable: bool
    reason: str
    count: int = 0
    name: str = ""


@functools.cache
def gpu_status() -> GpuStatus:
    """Whether a GPU can really be used, by running a kernel and a matrix product on it.

    A device that the driver lists is not yet a usable one (the compiler or cuBLAS may be missing),
    hence the probe. It runs once, at the first call; nothing is touched at import.
    """
    if "cupy" not in sys.modules and importlib.util.find_spec("cupy") is None:
        return GpuStatus(False, "CuPy is not installed (pip install energyscape[gpu-cuda12])")
    try:
        cupy = _cupy()
        if not cupy.cuda.is_available():
            return GpuStatus(False, "CuPy sees no CUDA device (no driver, or none is visible)")
        count = int(cupy.cuda.runtime.getDeviceCount())
        name = cupy.cuda.runtime.getDeviceProperties(0)["name"]
        words = cupy.empty((4,), dtype=np.uint32)
        launch("random_words", 1, (np.uint64(0), np.uint32(0), np.uint32(0), np.uint32(0), words))
        product = cupy.ones((2, 2), np.float32) @ cupy.ones((2, 2), np.float32)
        if float(product.sum()) != 8.0 or words.get().tolist() != _PHILOX_FIRST_WORDS:
            return GpuStatus(False, "the GPU computed a wrong product or wrong random bits")
    except Exception as error:  # a broken CUDA set-up fails in too many ways to name; all are told
        return GpuStatus(False, f"the GPU probe failed: {type(error).__name__}: {_told(error)}")
    name = name.decode() if isinstance(name, bytes) else str(name)
    _log.info("GPU usable: %s (%d device(s))", name, count)
    return GpuStatus(True, "", count, name)


def _told(error: Exception) -> str:
    """What a probe met, and for a library of CUDA's that is missing how to come by it."""
    text = str(error).strip()
    if any(name in text.lower() for name in ("nvrtc", "cublas", "libcu", "cudart")):
        text += " (pip install energyscape[gpu-cuda12], or [gpu-cuda13], brings CUDA's libraries)"
    return text


# Philox4x32-10 of an all-zero counter and key (Salmon et al., 2011, known-answer test).
_PHILOX_FIRST_WORDS = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def gpu_module() -> Any:
    """CuPy, for what no array tells; it is imported here and nowhere else."""
    return _cupy()


def _cupy() -> Any:
    import cupy

    return cupy


def _index(device: str) -> int:
    return int(device.partition(":")[2] or 0)


def nccl() -> Any:
    """CuPy's module for sums between GPUs.

    Raises
    ------
    DeviceError
        If NCCL, which CuPy's wheels do not bring along, is not there.
    """
    try:
        with warnings.catch_warnings():  # CuPy warns of a missing library; the error says more
            warnings.simplefilter("ignore")
            from cupy.cuda import nccl
        found = nccl.available
    except ImportError:
        found = False
    if not found:
        raise DeviceError(
            "sums between GPUs need CuPy and NCCL, which cannot be loaded; pip install "
            "nvidia-nccl-cu12 (or nvidia-nccl-cu13, as the CUDA of your CuPy), or let the workers "
            "add up over sockets, which is slower"
        )
    return nccl


# ---------------------------------------------------------------- CUDA kernels

THREADS = 256


def cuda_source() -> str:
    """The CUDA C++ text of every kernel of the library, as NVRTC compiles it."""
    return importlib.resources.files("energyscape.kernels").joinpath("kernels.cu").read_text()


@functools.cache
def _cuda_function(name: str, device: int) -> Any:
    return _cupy().RawModule(code=cuda_source(), options=("--std=c++14",)).get_function(name)


def launch(name: str, n_threads: int, args: Sequence[Any]) -> None:
    """Run the kernel ``name`` with one thread per item on the current CuPy device.

    Pointers are contiguous CuPy arrays, numbers are NumPy scalars of the kernel's exact types.
    """
    device = _cupy().cuda.Device().id
    blocks = max(1, -(-n_threads // THREADS))
    _cuda_function(name, device)((blocks,), (THREADS,), tuple(args))


# ---------------------------------------------------------------- randomness


class Purpose(IntEnum):
    """What a stream is for: two purposes never share numbers. Values are part of the format."""

    INIT = 0
    ORDER = 1
    TRANSFORM = 2
    START = 3
    COLLECT = 4
    SAMPLE = 5
    PARTITION = 6
    SPLIT = 7
    REPORT = 8
    DIAGNOSE = 9
    APPLY = 10


class Stream:
    """Random numbers for one (seed, purpose, step); subclasses give uniforms and normals.

    Every method takes ``shape``, or fills ``out`` in place; ``dtype`` is float32 or float64.
    """

    def uniform(self, shape: Any = None, dtype: Any = np.float32, out: Array = None) -> Array:
        """Uniform on [0, 1)."""
        raise NotImplementedError

    def normal(self, shape: Any = None, dtype: Any = np.float32, out: Array = None) -> Array:
        """Standard normal."""
        raise NotImplementedError

    def exponential(self, shape: Any) -> Array:
        """Standard exponential, float64: never 0/0, because 1 - u lies in (0, 1]."""
        u = self.uniform(shape, np.float64)
        namespace(u).subtract(1.0, u, out=u)
        namespace(u).log(u, out=u)
        return namespace(u).negative(u, out=u)

    def gamma(self, shape: Array) -> Array:
        """Gamma(``shape``, rate 1), one for every entry of ``shape`` >= 0, in its dtype.

        By rejection (Marsaglia and Tsang, 2000), in so many rounds that none is left over: one
        that is in all of them, with probability below 1e-15, gets the mode.
        """
        xp, real = namespace(shape), shape.dtype.type
        small = shape < 1
        d = shape + small.astype(shape.dtype) - real(1 / 3)
        c = real(1 / 3) / xp.sqrt(d)
        found, left = xp.ones_like(shape), xp.ones(shape.shape, bool)
        for _ in range(_GAMMA_ROUNDS):
            z = self.normal(shape.shape, shape.dtype)
            u = self.uniform(shape.shape, shape.dtype)
            v = 1 + c * z
            v = xp.maximum(v * v * v, real(0))
            with np.errstate(divide="ignore"):
                fits = xp.log(1 - u) < real(0.5) * z * z + d * (1 - v + xp.log(v))
            take = left & fits & (v > 0)
            found = xp.where(take, v, found)
            left &= ~take
        found *= d
        # Gamma(α) is Gamma(α + 1) times U^(1/α).
        with np.errstate(divide="ignore"):
            power = xp.log(1 - self.uniform(shape.shape, shape.dtype)) / shape
        return xp.where(small, found * xp.exp(power), found)

    def bernoulli(self, p: Array) -> Array:
        """0 or 1 with probability ``p`` of a 1, in the dtype of ``p``."""
        return (self.uniform(p.shape, p.dtype) < p).astype(p.dtype)

    def bernoulli_logit(self, a: Array, out: Array = None, bias: Array = None) -> Array:
        """0 or 1 with probability 1/(1 + exp(-a)) of a 1; ``out`` may be ``a`` itself. With a
        ``bias`` for each column, of a + bias."""
        xp = namespace(a)
        if bias is not None:
            a = out = xp.add(a, bias, out=out)
        # sigma(a) > u  <=>  tanh(a/2) > 2u - 1, and tanh neither overflows nor divides.
        t = xp.multiply(a, a.dtype.type(0.5), out=out)
        xp.tanh(t, out=t)
        u = self.uniform(a.shape, a.dtype)
        u *= a.dtype.type(2)
        u -= a.dtype.type(1)
        return xp.less(u, t, out=t)


_GAMMA_ROUNDS = 12  # each leaves over less than 5 % (1e-15 after all)
# Normals fewer than this are quicker by NumPy's ziggurat than by whole-array functions.
_MANY_NORMALS = 4096


class HostStream(Stream):
    """SFC64 on the CPU: the quickest of NumPy's generators, about 10 µs to make.

    Many float32 normals come from Box and Muller's transform in whole-array functions (2 ns each
    where NumPy's own take 7), as they do on the GPU; they reach to 5.8 standard deviations.
    """

    def __init__(self, seed: int, purpose: int, step: int, part: int = 0) -> None:
        address = [seed, int(purpose), step, *([part] if part else [])]
        self._generator = np.random.Generator(np.random.SFC64(address))

    def uniform(self, shape: Any = None, dtype: Any = np.float32, out: Array = None) -> Array:
        return self._generator.random(shape, dtype=dtype, out=out)

    def normal(self, shape: Any = None, dtype: Any = np.float32, out: Array = None) -> Array:
        n = math.prod(np.atleast_1d(shape) if out is None else out.shape)
        if n < _MANY_NORMALS or (dtype if out is None else out.dtype) != np.float32:
            return self._generator.standard_normal(shape, dtype=dtype, out=out)
        z = self._polar(-(-n // 2))[:n]
        if out is None:
            return z.reshape(shape)
        out[...] = z.reshape(out.shape)
        return out

    def gamma(self, shape: Array) -> Array:
        return self._generator.standard_gamma(shape, dtype=shape.dtype)

    def _polar(self, pairs: int) -> np.ndarray:
        """2·pairs standard normals, float32, flat."""
        radius, angle = self._generator.random((2, pairs), dtype=np.float32)
        np.subtract(1, radius, out=radius)  # in (0, 1]: the logarithm is finite
        np.log(radius, out=radius)
        radius *= np.float32(-2)
        np.sqrt(radius, out=radius)
        angle *= np.float32(2 * np.pi)
        z = np.empty((2, pairs), np.float32)
        np.cos(angle, out=z[0])
        np.sin(angle, out=z[1])
        z *= radius
        return z.reshape(-1)

    def permutation(self, n: int) -> np.ndarray:
        """A random order of 0 … n-1."""
        return self._generator.permutation(n)

    def choice(self, n: int, k: int) -> np.ndarray:
        """``k`` different numbers of 0 … n-1, in no order that means anything."""
        return self._generator.choice(n, k, replace=False, shuffle=False)


class DeviceStream(Stream):
    """Counter-based Philox4x32-10 on the GPU (Salmon et al., 2011).

    The counter is (block of four elements, call within the stream, step, purpose) and the key is
    the seed, below a worker's number: numbers depend neither on the GPU's model nor on how work is
    split over threads.
    """

    def __init__(self, seed: int, purpose: int, step: int, part: int = 0) -> None:
        key = np.uint64((seed + (part << 32)) % (1 << 64))
        self._address = key, np.uint32(int(purpose)), np.uint32(step)
        self._call = 0

    def uniform(self, shape: Any = None, dtype: Any = np.float32, out: Array = None) -> Array:
        return self._fill("uniform", shape, dtype, out)

    def normal(self, shape: Any = None, dtype: Any = np.float32, out: Array = None) -> Array:
        return self._fill("normal", shape, dtype, out)

    def bernoulli_logit(self, a: Array, out: Array = None, bias: Array = None) -> Array:
        a = namespace(a).ascontiguousarray(a)
        out = namespace(a).empty_like(a) if out is None else out
        if not out.flags.c_contiguous:
            out[...] = self.bernoulli_logit(a, bias=bias)
            return out
        columns = np.uint64(0 if bias is None else a.shape[-1])
        bias = a if bias is None else bias
        self._launch("bernoulli_logit", out, a, bias, out, columns, np.uint64(out.size))
        return out

    def _fill(self, kind: str, shape: Any, dtype: Any, out: Array) -> Array:
        if out is None:
            out = _cupy().empty(shape, dtype)
        self._launch(kind, out, out, np.uint64(out.size))
        return out

    def _launch(self, kind: str, out: Array, *rest: Any) -> None:
        per_thread = 4 if out.dtype == np.float32 else 2
        suffix = "f" if out.dtype == np.float32 else "d"
        name, threads = f"{kind}_{suffix}", -(-math.prod(out.shape) // per_thread)
        launch(name, threads, (*self._address, np.uint32(self._call), *rest))
        self._call += 1


def stream(seed: int, purpose: Purpose, step: int = 0, device: str = "cpu", part: int = 0) -> Any:
    """The random stream at an address; equal addresses give equal numbers on a device type.

    Parameters
    ----------
    seed, step : int >= 0, below 2**32
    purpose : Purpose
    device : str
    part : int
        Number of the worker, where several share a fit and each draws its own.
    """
    kind = HostStream if device == "cpu" else DeviceStream
    return kind(seed, purpose, step, part)


def draw_seed(random_state: Any) -> int:
    """One integer for a fit: the int itself, or a draw from whatever generator is given.

    Parameters
    ----------
    random_state : int, None, numpy.random.RandomState or numpy.random.Generator
        None draws from NumPy's global state, as scikit-learn does.
    """
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if random_state is None:
        return int(np.random.mtrand._rand.randint(2**31 - 1))
    if isinstance(random_state, int | np.integer) and not isinstance(random_state, bool):
        if random_state < 0:
            raise ValueError(f"random_state must be >= 0, got {random_state}")
        return int(random_state)
    raise ValueError(
        "random_state must be an int, None, a numpy.random.RandomState or Generator; got "
        f"{random_state!r}"
    )
