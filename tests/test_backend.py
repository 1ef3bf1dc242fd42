"""The GPU path without a GPU: the stand-in runs every line, twins run the kernels, and NVRTC and
the host compiler take the CUDA source; with a GPU the same tests run on the real thing."""

from __future__ import annotations

import ctypes
import glob
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import standin
import twins
from cases import CASES, MACHINES, MOVED, Case, moved_id, short
from sklearn.base import clone
from streams import ReplayStream

from energyscape import backend, kernels
from energyscape.backend import HostStream, Purpose, stream, to_host
from energyscape.errors import DeviceError
from energyscape.evaluation.laws import generic_params
from energyscape.models import RBM
from energyscape.optim import SGD, Adam, Moment
from energyscape.samplers import AIS, HMC, Gibbs
from energyscape.trainers import FPCD, PCD
from energyscape.trainers.base import Batch
from energyscape.verbs import speaks

BITS = CASES[0].data.astype(np.float32)


# ---------------------------------------------------------------- devices


def test_import_is_quick_and_touches_neither_cupy_nor_matplotlib() -> None:
    """In seconds of its own, once there is bytecode, whatever else runs here."""
    code = """
import sys, time
import sklearn.base, sklearn.pipeline, sklearn.datasets, sklearn.utils.extmath, h5py, tqdm
started = time.process_time()
import energyscape
print(time.process_time() - started)
print([m for m in ("cupy", "matplotlib", "PIL", "torch") if m in sys.modules])
"""
    settings = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(2):
        command = [sys.executable, "-c", code]
        run = subprocess.run(command, capture_output=True, text=True, env=settings)
        seconds, modules = run.stdout.splitlines()
        assert modules == "[]", run.stderr
    # scikit-learn's own import takes most of a second here; what we add to it is ours.
    assert float(seconds) < 0.5


def test_without_cupy_cuda_is_refused_with_the_reason(no_gpu: Any) -> None:
    assert not backend.gpu_status().usable
    with pytest.raises(
        DeviceError, match=r"device='cuda' was asked for, but CuPy is not installed"
    ):
        RBM(3, device="cuda").fit(BITS)
    RBM(3, device="auto", trainer=PCD(n_epochs=1)).fit(BITS)


def test_a_broken_gpu_is_not_usable_and_says_why(fake_cupy: ModuleType, monkeypatch: Any) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("libnvrtc.so.12 is missing")

    monkeypatch.setattr(fake_cupy, "RawModule", broken)
    with pytest.raises(DeviceError, match=r"probe failed: RuntimeError: libnvrtc"):
        RBM(3, device="cuda").fit(BITS)


def test_a_gpu_that_computes_nonsense_is_not_usable(fake_cupy: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(twins, "random_words", lambda *args: None)
    with pytest.raises(DeviceError, match="wrong random bits"):
        RBM(3, device="cuda").fit(BITS)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:", 3])
def test_device_names_are_checked(device: Any) -> None:
    with pytest.raises(ValueError, match="device must be"):
        RBM(3, device=device).fit(BITS)


def test_a_gpu_that_is_not_there(fake_cupy: Any) -> None:
    with pytest.raises(DeviceError, match=r"'cuda:5' was asked for, but there is only cuda:0"):
        RBM(3, device="cuda:5").fit(BITS)


def test_no_driver_and_no_cublas(fake_cupy: Any, monkeypatch: Any) -> None:
    def absent(*args: Any) -> Any:
        raise ImportError('Failure finding "libcublasLt.so.12"')

    monkeypatch.setattr(standin.ndarray, "__matmul__", absent)
    with pytest.raises(DeviceError, match=r"libcublasLt.*\(pip install energyscape\[gpu-cuda12\]"):
        RBM(3, device="cuda").fit(BITS)
    monkeypatch.setattr(fake_cupy.cuda, "is_available", lambda: False)
    backend.gpu_status.cache_clear()
    with pytest.raises(DeviceError, match=r"sees no CUDA device \(no driver, or none is visible\)"):
        RBM(3, device="cuda:0").fit(BITS)


def test_real_cupy_without_a_driver_says_so() -> None:
    if backend.gpu_status().usable or importlib.util.find_spec("cupy") is None:
        pytest.skip("a GPU is usable here, or CuPy is not there to ask")
    with pytest.raises(DeviceError, match=r"CuPy sees no CUDA device|the GPU probe failed"):
        RBM(3, device="cuda").fit(BITS)


# ---------------------------------------------------------------- the container rule


@pytest.mark.filterwarnings("ignore::energyscape.errors.UnnormalizedScoreWarning")
@pytest.mark.filterwarnings("ignore::energyscape.errors.SamplerWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_containers_in_are_containers_out(case: Case, dtype: Any, cupy: ModuleType) -> None:
    X = case.data.astype(dtype)
    device_X = cupy.asarray(X)
    trainer = short(PCD if case in MACHINES else case.trainers[0], n_epochs=2)
    make = clone(case.make(trainer=trainer, random_state=0))
    on_gpu = clone(make).fit(device_X)
    asked = clone(make).set_params(device="cuda").fit(X)
    for model, container in ((on_gpu, cupy.ndarray), (asked, np.ndarray)):
        assert all(type(v) is container for v in model.params_.values())
        assert type(model.components_) is container
        if model.proper or hasattr(model, "sample_exact"):
            # HMC as it is by itself warms up for 500 steps, which are slow here.
            own = model.default_sampler() if hasattr(model, "default_sampler") else None
            sampler = HMC(2, 0.01) if model.proper and isinstance(own, HMC) else None
            assert type(model.sample(2, n_steps=2, sampler=sampler)) is container
        for name in ("transform", "energy", "score_samples", "reconstruct"):
            if name == "reconstruct" and speaks(model, ("decode",)):
                continue
            assert type(getattr(model, name)(X)) is np.ndarray, name
            assert type(getattr(model, name)(device_X)) is cupy.ndarray, name
        if not speaks(model, ("decode",)):
            assert type(model.inverse_transform(model.transform(device_X))) is cupy.ndarray
        assert model.transform(X).dtype == dtype
        assert isinstance(model.score(device_X), float)
    for name, value in on_gpu.params_.items():
        np.testing.assert_array_equal(to_host(value), asked.params_[name])
    host = clone(make).set_params(device="cpu").fit(device_X)
    assert type(host.transform(device_X)) is cupy.ndarray


def test_pickles_and_files_are_numpy_and_go_back_to_the_gpu(cupy: Any, tmp_path: Path) -> None:
    import pickle

    import energyscape

    X = cupy.asarray(BITS)
    model = RBM(4, trainer=PCD(n_epochs=4, callbacks=[]), random_state=0).fit(X)
    model.save(tmp_path / "m.h5")
    for again in (pickle.loads(pickle.dumps(model)), energyscape.load(tmp_path / "m.h5")):
        assert all(type(v) is np.ndarray for v in again.params_.values())
        np.testing.assert_allclose(again.transform(BITS), model.transform(BITS), atol=1e-6)
        assert type(again.transform(X)) is cupy.ndarray
        assert backend.is_gpu_array(again._state.params["W"])
        again.partial_fit(X)


def test_gpu_rows_are_checked(cupy: Any) -> None:
    model = RBM(4, trainer=PCD(n_epochs=1))
    for X, message in [
        (cupy.zeros((3,), np.float32), "Expected 2D array"),
        (cupy.zeros((0, 3), np.float32), r"0 sample\(s\)"),
        (cupy.zeros((3, 0), np.float32), r"0 feature\(s\)"),
        (cupy.full((3, 2), np.nan, np.float32), "NaN or infinity"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.fit(X)
    model.fit(cupy.asarray(BITS))
    with pytest.raises(ValueError, match="X has 3 features, but RBM is expecting 7"):
        model.transform(cupy.zeros((3, 3), np.float32))


def test_resume_on_the_gpu_is_bit_exact(cupy: Any, tmp_path: Path) -> None:
    import energyscape

    X = cupy.asarray(BITS)
    whole = RBM(4, trainer=FPCD(n_epochs=4, batch_size=20), random_state=0).fit(X)
    stop = FPCD(n_epochs=4, batch_size=20, callbacks=[lambda m, s, i: s.epoch == 2])
    half = RBM(4, trainer=stop, random_state=0).fit(X)
    half.trainer_.callbacks = ()
    half.set_params(trainer=FPCD(n_epochs=4, batch_size=20)).save(tmp_path / "h.h5")
    half = energyscape.load(tmp_path / "h.h5").resume(X)
    for name, value in whole._state.params.items():
        np.testing.assert_array_equal(to_host(value), to_host(half._state.params[name]))


# ---------------------------------------------------------------- one code base


@pytest.mark.filterwarnings("ignore::energyscape.errors.SamplerWarning")
@pytest.mark.parametrize(("case", "trainer"), MOVED, ids=moved_id)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_both_paths_agree_on_the_same_noise(
    case: Case, trainer: Any, dtype: Any, cupy: ModuleType
) -> None:
    """Updates, energies, samples and AIS from equal noise: to rounding in float64; in float32 one
    flipped comparison changes a chain, so that a few rounding errors' worth is all there is."""
    model, X = case.make(), case.data.astype(dtype)
    trainer = clone(trainer).set_params(optimizer=SGD(0.01, momentum=0.5, l1=1e-3, l2=1e-3))
    results = []
    for xp in (np, cupy):
        x = X if xp is np else xp.asarray(X)
        params = model.init_params(x, ReplayStream(xp, 1))
        carry = trainer.start(model, params, x, ReplayStream(xp, 2))
        for step in range(3):
            rng = ReplayStream(xp, 3, step)
            sums = trainer.collect(model, params, carry, Batch(x, len(x)), rng)
            trainer.apply(model, params, carry, sums, Moment(0, step, 0.1))
        base = model.base_measure(params)
        path = model.target(params, base=base)
        sample = Gibbs().run(model.target(params), x[:5], 2, ReplayStream(xp, 4)).x
        ais = AIS(10, 5).run(path, ReplayStream(xp, 5))
        result = {k: to_host(v) for k, v in (params | carry).items()}
        result |= {"energy": to_host(model.free_energy(params, x)), "sample": to_host(sample)}
        results.append(result | {"ais": ais.log_weights})
    tolerance = 1e-9 if dtype == np.float64 else 2e-3
    for name, value in results[0].items():
        assert value.dtype == results[1][name].dtype, name
        scale = max(1.0, float(np.abs(value).max(initial=0)))
        np.testing.assert_allclose(
            results[1][name] / scale, value / scale, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize(
    ("case", "trainer"), [m for m in MOVED if "Metropolis" not in repr(m[1])], ids=moved_id
)
@pytest.mark.parametrize("optimizer", [SGD(0.01, momentum=0.5), Adam()], ids=repr)
def test_a_step_does_not_wait_for_the_device(
    case: Case, trainer: Any, optimizer: Any, fake_cupy: Any
) -> None:
    model, x = case.make(), fake_cupy.asarray(case.data.astype(np.float32))
    trainer = clone(trainer).set_params(optimizer=optimizer, averaging=0.5)
    params = model.init_params(x, stream(0, Purpose.INIT, 0, "cuda:0"))
    carry = trainer.start(model, params, x, stream(0, Purpose.START, 0, "cuda:0"))
    standin.Counter.syncs = 0
    for step in range(3):
        rng = stream(0, Purpose.COLLECT, step, "cuda:0")
        sums = trainer.collect(model, params, carry, Batch(x, len(x)), rng)
        trainer.apply(model, params, carry, sums, Moment(0, step, 0.1, rng))
    assert standin.Counter.syncs == 0
    float(params["W"].sum())
    assert standin.Counter.syncs == 1, "the counter counts"


def test_an_epoch_waits_once_for_its_history(fake_cupy: Any) -> None:
    """Synchronisations do not grow with the number of batches."""
    counts = []
    for batch_size in (60, 5):
        trainer = PCD(n_epochs=1, batch_size=batch_size, n_chains=100)
        model = RBM(4, trainer=trainer, random_state=0)
        X = fake_cupy.asarray(BITS)
        standin.Counter.syncs = 0
        model.fit(X)
        counts.append(standin.Counter.syncs)
    assert counts[0] == counts[1]


# ---------------------------------------------------------------- the stand-in itself


def test_the_stand_in_is_no_numpy_array(fake_cupy: Any) -> None:
    from sklearn.utils import check_array

    a = fake_cupy.asarray(np.ones((2, 2), np.float32))
    assert not isinstance(a, np.ndarray)
    for attempt in (
        lambda: np.asarray(a),
        lambda: check_array(a),
        lambda: np.add(a, 1),
        lambda: a + np.ones((2, 2)),
        lambda: np.ones((2, 2)) + a,
        lambda: a.__setitem__(0, np.ones(2)),
        lambda: fake_cupy.concatenate([a, np.ones((2, 2))]),
        lambda: a[np.array([0])],
    ):
        with pytest.raises(TypeError):
            attempt()
    assert (a + 1).dtype == np.float32 and (np.float32(2) * a).dtype == np.float32
    standin.Counter.syncs = 0
    for attempt in (lambda: float(a.sum()), lambda: bool(a.all()), a.get, lambda: a[a > 0]):
        attempt()
    assert standin.Counter.syncs == 4


def test_the_stand_in_offers_only_what_cupy_has() -> None:
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("CuPy is not installed")
    import cupy as real

    missing = [name for name in standin.FUNCTIONS if not hasattr(real, name)]
    assert not missing
    methods = [m for m in vars(standin.ndarray) if not m.startswith("_")]
    assert [m for m in methods if not hasattr(real.ndarray, m)] == []


# ---------------------------------------------------------------- kernels


def test_philox_passes_its_known_answer_test() -> None:
    """Vectors of the Random123 distribution for philox4x32-10."""
    ones = 0xFFFFFFFF
    known = [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (ones, ones, ones, ones),
            ones << 32 | ones,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0 << 32 | 0xA4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for (c0, c1, c2, c3), key, wanted in known:
        assert tuple(twins.philox(c0, c1, c2, c3, key)[0]) == wanted


def _kernel_cases(rng: np.random.Generator) -> dict[str, tuple[int, list[Any]]]:
    """Threads and arguments of every kernel, at sizes that do not fill the last thread or block."""
    address = [np.uint64(0x123456789ABCDEF), np.uint32(3), np.uint32(17), np.uint32(2)]
    cases: dict[str, tuple[int, list[Any]]] = {
        "random_words": (1, [*address, np.zeros(4, np.uint32)])
    }
    for dtype in (np.float32, np.float64):
        made = _random_cases(address, rng, dtype) | _unit_cases(rng, dtype)
        made |= _step_cases(rng, dtype) | _chain_cases(rng, dtype) | _window_cases(rng, dtype)
        suffix = "f" if dtype == np.float32 else "d"
        for key, case in made.items():
            name, _, number = key.partition("#")
            cases[f"{name}_{suffix}#{number}"] = case
    return cases


def _sizes(*sizes: int) -> list[Any]:
    return [np.uint64(size) for size in sizes]


def _random_cases(address: list[Any], rng: Any, dtype: Any) -> dict[str, tuple[int, list[Any]]]:
    threads = -(-1003 // (4 if dtype == np.float32 else 2))
    a, bias = _far((59, 17), rng, dtype), rng.standard_normal(17).astype(dtype)
    flat, (n,) = a.reshape(-1), _sizes(1003)
    cases = {
        "uniform": [*address, np.zeros(1003, dtype), n],
        "normal": [*address, np.zeros(1003, dtype), n],
        "bernoulli_logit": [*address, flat, flat, np.zeros(1003, dtype), np.uint64(0), n],
        "bernoulli_logit#1": [*address, a, bias, np.zeros_like(a), *_sizes(17, 1003)],
    }
    return {name: (threads, args) for name, args in cases.items()}


def _far(shape: Any, rng: Any, dtype: Any) -> np.ndarray:
    """Fields, some of which are far out."""
    a = (8 * rng.standard_normal(shape)).astype(dtype)
    a.reshape(-1)[:4] = [-200, 200, 0, -90]
    return a


def _unit_cases(rng: Any, dtype: Any) -> dict[str, tuple[int, list[Any]]]:
    def array(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    cases: dict[str, tuple[int, list[Any]]] = {}
    rows = _far((5, 301), rng, dtype)
    for i, bias in enumerate((rows, array(301))):
        args = [rows, bias, np.zeros(5), np.uint64(301), np.uint32(i)]
        cases[f"softplus_sum#{i}"] = 256 * 5, args
        args = [rows, bias, np.zeros_like(rows), *_sizes(301 * i, rows.size)]
        cases[f"sigmoid#{i}"] = rows.size, args
        z, level = 3 * array(59, 17) ** 2, abs(array(17))
        args = [z, level, np.zeros_like(z), np.uint32(i), *_sizes(17, z.size)]
        cases[f"slope#{i}"] = z.size, args
    for kind, gate in enumerate((array(11), array(11), array(59, 11))):
        args = [3 * array(59, 17), array(17), gate, np.uint32(kind), *_sizes(11, 17, 59 * 17)]
        cases[f"gate#{kind}"] = 59 * 17, args
    z, out = rows * rows, np.zeros(5)
    cases["log_sum"] = 256 * 5, [z, abs(array(301)), out.copy(), np.uint64(301)]
    cases["square_sum"] = 256 * 5, [rows, abs(array(1)), array(301), out, np.uint64(301)]
    r = array(59, 17)
    cases["half_square"] = r.size, [r, np.zeros_like(r), np.uint64(r.size)]
    sizes = _sizes(11, 17, 59 * 11)
    cases["respond"] = 59 * 11, [r, array(17), np.zeros((59, 11), dtype), *sizes]
    cases["pull"] = r.size, [array(59, 17), r, array(1), array(17), *_sizes(17, r.size)]
    return cases


def _step_cases(rng: Any, dtype: Any) -> dict[str, tuple[int, list[Any]]]:
    def array(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    cases: dict[str, tuple[int, list[Any]]] = {}
    for i, (momentum, nesterov) in enumerate(((0.0, 0), (0.5, 0), (0.5, 1))):
        scalars = [dtype(0.1), dtype(momentum), np.uint32(nesterov), dtype(0.01), dtype(0.02)]
        args = [array(1003), array(1003), array(1003), *scalars, np.uint64(1003)]
        args[1][:2] = np.nan, np.inf
        cases[f"descend#{i}"] = 1003, args
    scalars = [dtype(v) for v in (0.9, 0.99, 0.1, 0.01, 1e-3)]
    cases["adapt"] = 1003, [array(1003), abs(array(1003)), array(1003), *scalars, np.uint64(1003)]
    for kind in range(3):
        v, b, h, y = (array(7, 301) for _ in range(4))
        # Random rows point downhill, every second one of these uphill.
        y[::2] = 2 * (v + b if kind < 2 else v)[::2] - h[::2]
        v[3, 5] = np.nan
        t = (1 + 3 * rng.random(7)).astype(dtype)
        share = np.zeros_like(t)
        args = [v, b, h, y, t, share, dtype(0.4), np.uint32(kind), np.uint64(301)]
        cases[f"momentum#{kind}"] = 256 * 7, args
    args = [array(1003), array(1003), dtype(0.1), np.uint64(1003)]
    cases["follow"] = 1003, args
    w, *sides = array(59, 17), array(59), array(17), array(59), array(17)
    cases["rank_two"] = w.size, [w, *sides, *_sizes(17, w.size)]
    return cases


def _chain_cases(rng: Any, dtype: Any) -> dict[str, tuple[int, list[Any]]]:
    def array(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    cases: dict[str, tuple[int, list[Any]]] = {}
    for i, (rows, columns) in enumerate(((59, 1), (59, 17), (1, 17), (1, 1))):
        x, q, z, g = (array(59, 17) for _ in range(4))
        factor = rng.random((rows, columns)).astype(dtype)
        if i == 1:
            factor[:, 3] = 0
        sizes = _sizes(17, columns if rows > 1 else 0, columns > 1, x.size)
        cases[f"leapfrog#{i}"] = x.size, [x, q.copy(), g, factor, *sizes]
        new = np.zeros_like(x), np.zeros_like(x)
        cases[f"set_off#{i}"] = x.size, [x, z, g, factor, *new, dtype(1.5), *sizes]
        cases[f"arrive#{i}"] = x.size, [q, z, g, factor, dtype(1.5), *sizes]
    x, end_x, g, end_g, z, end_z = (array(59, 301) for _ in range(6))
    end_z *= dtype(np.sqrt((z * z).sum(axis=1) / (end_z * end_z).sum(axis=1)).mean())
    energy = rng.standard_normal(59)
    end_energy = energy + 3 * rng.standard_normal(59)
    end_energy[:4] = np.nan, np.inf, -np.inf, 1e5
    args = [energy, end_energy, z, end_z, rng.random(59), x, end_x, g, end_g]
    args += [np.float64(1.5), np.float64(1000), np.uint64(301), np.zeros(59), np.zeros_like(x)]
    args += [np.zeros_like(x), np.zeros(59), np.zeros(59, bool), np.zeros(59, bool)]
    cases["accept"] = 256 * 59, args
    return cases


def _window_cases(rng: Any, dtype: Any) -> dict[str, tuple[int, list[Any]]]:
    cases: dict[str, tuple[int, list[Any]]] = {}
    (n, h, w, c), (fh, fw) = (2, 7, 5, 3), (3, 2)
    x = rng.standard_normal((n, h, w, c)).astype(dtype)
    for i, (top, left, down, across) in enumerate(((0, 0, 5, 4), (2, 1, 9, 6), (1, 0, 7, 5))):
        rows = np.zeros((n * down * across, fh * fw * c), dtype)
        sizes = [np.uint32(s) for s in (h, w, c, fh, fw, top, left, down, across)]
        cases[f"im2col#{i}"] = rows.size, [x, rows, *sizes, np.uint64(rows.size)]
    for i, (sh, sw) in enumerate(((1, 1), (2, 3))):
        down, across = (h - fh) // sh + 1, (w - fw) // sw + 1
        rows = rng.standard_normal((n * down * across, fh * fw * c)).astype(dtype)
        sizes = [np.uint32(s) for s in (h, w, c, fh, fw, sh, sw, down, across)]
        cases[f"col2im#{i}"] = x.size, [rows, np.zeros_like(x), *sizes, np.uint64(x.size)]
    return cases


def _compare(name: str, got: list[Any], wanted: list[Any]) -> None:
    for a, b in zip(got, wanted, strict=True):
        if isinstance(a, np.ndarray):
            exact = a.dtype.kind != "f" or "uniform" in name or "bernoulli" in name
            if exact or "im2col" in name:
                np.testing.assert_array_equal(a, b, err_msg=name)
            else:
                # Transcendental functions differ by a few units in the last place.
                tolerance = 2e-6 if "_f" in name else 1e-13
                np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


def test_every_kernel_has_a_twin_and_a_case(rng: Any) -> None:
    names = set(standin.signatures(backend.cuda_source()))
    assert names == {name.partition("#")[0] for name in _kernel_cases(rng)}
    assert all(callable(getattr(twins, name)) for name in names)


@pytest.mark.gpu
def test_kernels_equal_their_twins_on_the_gpu(rng: Any) -> None:
    if not backend.gpu_status().usable:
        pytest.skip(backend.gpu_status().reason)
    import cupy as real

    for name, (threads, args) in _kernel_cases(rng).items():
        on_gpu = [real.asarray(a) if isinstance(a, np.ndarray) else a for a in args]
        backend.launch(name.partition("#")[0], threads, on_gpu)
        getattr(twins, name.partition("#")[0])(-(-threads // 256) * 256, *args)
        _compare(name, [to_host(a) if hasattr(a, "get") else a for a in on_gpu], args)


_SHIM = """
#include <cmath>
#include <barrier>
#include <thread>
#include <vector>
#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
struct Dim { unsigned x; };
static thread_local Dim threadIdx, blockIdx;
static Dim blockDim = {256};
static std::barrier<>* gate;
static void __syncthreads() { gate->arrive_and_wait(); }
static unsigned __umulhi(unsigned a, unsigned b) { return (unsigned long long)a * b >> 32; }
template <class F> static void grid(unsigned blocks, F body) {
    for (unsigned b = 0; b < blocks; ++b) {
        std::barrier<> here(256); gate = &here;
        std::vector<std::thread> threads;
        for (unsigned t = 0; t < 256; ++t)
            threads.emplace_back([=] { threadIdx.x = t; blockIdx.x = b; body(); });
        for (auto& thread : threads) thread.join();
    }
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the kernels with")
def test_kernels_equal_their_twins_on_the_host(rng: Any, tmp_path: Path) -> None:
    """The CUDA source itself, compiled for the CPU with one thread per CUDA thread."""
    signatures = standin.signatures(backend.cuda_source())
    c_types = {"f4": "float", "f8": "double", "u4": "unsigned", "u8": "unsigned long long"}
    c_types["b1"] = "bool"
    text = _SHIM + backend.cuda_source()
    for name, arguments in signatures.items():
        types_ = [c_types[d.str[1:]] + ("*" if p else "") for d, p in arguments]
        declared = ", ".join(f"{t} a{i}" for i, t in enumerate(types_))
        passed = ", ".join(f"a{i}" for i in range(len(types_)))
        body = f"grid(blocks, [=] {{ {name}({passed}); }});"
        text += f'\nextern "C" void run_{name}(unsigned blocks, {declared}) {{ {body} }}'
    source, library = tmp_path / "kernels.cpp", tmp_path / "kernels.so"
    source.write_text(text)
    command = ["g++", "-std=c++20", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-pthread"]
    subprocess.run([*command, str(source), "-o", str(library)], check=True, capture_output=True)
    compiled = ctypes.CDLL(str(library))
    kinds = {
        "f4": ctypes.c_float,
        "f8": ctypes.c_double,
        "u4": ctypes.c_uint,
        "u8": ctypes.c_ulonglong,
        "b1": ctypes.c_bool,
    }
    for key, (threads, args) in _kernel_cases(rng).items():
        name, blocks = key.partition("#")[0], -(-threads // 256)
        mine = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
        converted: list[Any] = [ctypes.c_uint(blocks)]
        for (dtype, pointer), a in zip(signatures[name], mine, strict=True):
            kind = kinds[dtype.str[1:]]
            converted.append(a.ctypes.data_as(ctypes.POINTER(kind)) if pointer else kind(a.item()))
        getattr(compiled, f"run_{name}")(*converted)
        getattr(twins, name)(blocks * 256, *args)
        _compare(key, mine, args)


def _nvrtc() -> Any:
    pattern = "nvidia/cuda_nvrtc/lib/libnvrtc.so.*"
    found = [p for s in sys.path for p in glob.glob(f"{s}/{pattern}") if "builtins" not in p]
    found += [p for s in sys.path for p in glob.glob(f"{s}/nvidia/cu13/lib/libnvrtc.so.*")]
    return ctypes.CDLL(found[0]) if found else None


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_nvrtc_compiles_the_kernels(architecture: str) -> None:
    nvrtc = _nvrtc()
    if nvrtc is None:
        pytest.skip("NVRTC is not installed")
    program = ctypes.c_void_p()
    source = backend.cuda_source().encode()
    assert (
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernels.cu", 0, None, None) == 0
    )
    options = (ctypes.c_char_p * 2)(f"-arch={architecture}".encode(), b"--std=c++14")
    status = nvrtc.nvrtcCompileProgram(program, 2, options)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    assert b"warning" not in log.value, log.value.decode()
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    assert size.value > 1000


# ---------------------------------------------------------------- streams and kernels on the CPU


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_streams_are_addressed_and_have_their_moments(
    device: str, dtype: Any, cupy: ModuleType
) -> None:
    n = 200_000

    def draw(seed: int, purpose: Purpose, step: int) -> Any:
        s = stream(seed, purpose, step, device)
        return [to_host(s.uniform(n, dtype)), to_host(s.normal(n, dtype))]

    one = draw(1, Purpose.COLLECT, 5)
    for again, same in (
        (draw(1, Purpose.COLLECT, 5), True),
        (draw(2, Purpose.COLLECT, 5), False),
        (draw(1, Purpose.SAMPLE, 5), False),
        (draw(1, Purpose.COLLECT, 6), False),
    ):
        assert all(np.array_equal(a, b) is same for a, b in zip(one, again, strict=True))
    u, z = one
    assert u.dtype == z.dtype == dtype
    assert u.min() >= 0 and u.max() < 1
    # Five standard errors of each moment: false alarm 6e-7 each.
    assert abs(u.mean() - 0.5) < 5 * np.sqrt(1 / 12 / n)
    assert abs(z.mean()) < 5 / np.sqrt(n)
    assert abs(z.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / n)
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / np.sqrt(n)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bernoulli_draws_have_their_probabilities(
    device: str, dtype: Any, cupy: ModuleType
) -> None:
    logits = np.array([-30, -3, -0.5, 0, 0.5, 3, 30, -800, 800], dtype)
    n = 100_000
    a = backend.to_device(np.repeat(logits[None], n, 0), device)
    s = stream(0, Purpose.SAMPLE, 0, device)
    p = 1 / (1 + np.exp(-logits.astype(np.float64).clip(-700, 700)))
    for draws in (s.bernoulli_logit(a), s.bernoulli(kernels.sigmoid(a))):
        draws = to_host(draws)
        assert draws.dtype == dtype and set(np.unique(draws)) <= {0, 1}
        error = np.sqrt(p * (1 - p) / n)
        # 5.5 standard errors over 9 probabilities: false alarm below 1e-6.
        assert (np.abs(draws.mean(axis=0) - p) <= 5.5 * error + 1e-9).all()


def test_large_logits_are_drawn_without_bias() -> None:
    """p = 1e-5 is not rounded to 0: the draw resolves 24 bits."""
    n = 20_000_000
    a = np.full(n, np.log(1e-5 / (1 - 1e-5)), np.float32)
    hits = HostStream(0, 0, 0).bernoulli_logit(a).sum()
    assert abs(hits - 200) < 5.5 * np.sqrt(200)


def test_sigmoid_and_softplus_hold_far_out() -> None:
    a = np.array([[-1e4, -90, -20, -1, 0, 1, 20, 90, 1e4]])
    for dtype, tolerance in ((np.float32, 1e-6), (np.float64, 1e-15)):
        with np.errstate(over="ignore"):
            wanted = 1 / (1 + np.exp(-a))
        np.testing.assert_allclose(kernels.sigmoid(a.astype(dtype)), wanted, atol=tolerance)
        for column in a.T:
            got = kernels.softplus_sum(column[None].astype(dtype))[0]
            np.testing.assert_allclose(got, np.logaddexp(0, column[0]), rtol=10 * tolerance)
            assert got.dtype == np.float64


@pytest.mark.parametrize("shape", [(2, 3, 1), (2, 3, 6, 5), (2, 3, 19)], ids=str)
def test_sums_of_logarithms_are_off_by_no_more_than_their_bound(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    for scale in (1e-9, 1e-4, 1.0, 1e3, 1e10, 1e30):  # products of the last ones overflow
        z = (scale * rng.exponential(size=shape)).astype(np.float32)
        terms = np.log1p(z.astype(np.float64)).reshape(2, 3, -1)
        wanted, count = terms.sum(axis=2), terms.shape[2]
        found = kernels.log1p_sum(z)
        assert found.dtype == np.float64 and found.shape == (2, 3)
        assert (abs(found - wanted) <= 2e-7 * count + 5e-7 * wanted).all()
        exact = kernels.log1p_sum(z.astype(np.float64))
        np.testing.assert_allclose(exact, wanted, rtol=1e-14, atol=3e-16 * count)
        if z.ndim > 3:
            part = kernels.log1p_sum(np.ascontiguousarray(z[..., :3]))
            np.testing.assert_allclose(kernels.log1p_sum(z, 3), part, rtol=1e-14)


def test_parameters_must_be_contiguous_on_the_gpu(fake_cupy: Any) -> None:
    w = fake_cupy.zeros((3, 4), np.float32)
    with pytest.raises(ValueError, match="C-contiguous"):
        kernels.descend(w.T, w, None, 0.1)
    with pytest.raises(ValueError, match="C-contiguous"):
        kernels.adapt(w, w, w.T, 0.9, 0.999, 1e-8)


def test_generic_params_are_frozen() -> None:
    params = generic_params(RBM(3), BITS)
    with pytest.raises(ValueError, match="read-only"):
        params["W"] += 1


def test_results_go_home_from_another_device(fake_cupy: Any) -> None:
    """Rows on the GPU, computing on the CPU: samples and attributes are CuPy's all the same."""
    X = fake_cupy.asarray(BITS)
    model = RBM(3, trainer=PCD(n_epochs=1), device="cpu", random_state=0).fit(X)
    for result in (model.sample(2, n_steps=1), model.components_, model.transform(X)):
        assert isinstance(result, fake_cupy.ndarray)
