"""TF32 and float16 inputs of products on a GPU: what is rounded, how far, and for how long."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin
from cases import CASES

import energyscape
from energyscape import backend, kernels
from energyscape.backend import to_host
from energyscape.errors import DeviceError
from energyscape.evaluation.laws import generic_params
from energyscape.models import RBM, GaussianRBM, MPoT
from energyscape.trainers import PCD

RNG = np.random.default_rng(0)
# Half a unit in the last of 11 digits (10 bits behind the leading one): of either kind of input.
ROUNDING = 2.0**-11


def _layouts(a: np.ndarray, cupy: Any) -> list[Any]:
    """A matrix by rows, by columns, and as a part of a wider one, on the device."""
    wide = np.zeros((len(a), a.shape[1] + 3), np.float32)
    wide[:, 1:-2] = a
    return [
        cupy.asarray(a),
        cupy.asarray(np.ascontiguousarray(a.T)).T,
        cupy.asarray(wide)[:, 1:-2],
    ]


@pytest.mark.parametrize(
    "shape", [(5, 7, 3), (1, 7, 3), (5, 1, 3), (5, 7, 1), (1, 1, 1), (64, 8, 8)]
)
def test_float16_inputs_are_rounded_and_sums_are_not(shape: Any, cupy: Any) -> None:
    """In every layout and into memory that is there: the product of rounded inputs, to the rounding
    of float32 sums of k terms."""
    n, k, m = shape
    a, b = (RNG.standard_normal(s).astype(np.float32) for s in ((n, k), (k, m)))
    wanted = a.astype(np.float16).astype(float) @ b.astype(np.float16).astype(float)
    size = abs(a).astype(float) @ abs(b).astype(float)
    out = cupy.empty((n, m), np.float32)
    with energyscape.matmul_precision("float16"):
        for left, right in itertools.product(_layouts(a, cupy), _layouts(b, cupy)):
            for found in (kernels.matmul(left, right), kernels.matmul(left, right, out=out)):
                assert found.dtype == np.float32
                assert (abs(to_host(found) - wanted) <= 2.0**-24 * (k + 1) * size).all()
    assert (abs(wanted - a.astype(float) @ b) <= 2.1 * ROUNDING * size + 1e-6).all()


def test_other_products_are_as_they_were(fake_cupy: Any) -> None:
    """float64, stacks of matrices and products with nothing in them."""
    with energyscape.matmul_precision("float16"):
        for a, b in (
            (RNG.standard_normal((4, 3)), RNG.standard_normal((3, 2))),
            (
                RNG.standard_normal((2, 4, 3)).astype("f4"),
                RNG.standard_normal((2, 3, 2)).astype("f4"),
            ),
            (np.zeros((4, 0), np.float32), np.zeros((0, 2), np.float32)),
        ):
            found = kernels.matmul(fake_cupy.asarray(a), fake_cupy.asarray(b))
            np.testing.assert_array_equal(to_host(found), a @ b)


def test_rounding_to_tf32_keeps_ten_bits() -> None:
    a = (RNG.standard_normal(10_000) * 10.0 ** RNG.integers(-30, 30, 10_000)).astype(np.float32)
    rounded = standin.to_tf32(a)
    assert (rounded.view(np.uint32) & 0x1FFF == 0).all()
    assert (abs(rounded.astype(float) - a) <= ROUNDING * abs(a.astype(float))).all()
    # As near as float16 comes where both have the range.
    b = RNG.uniform(1e-3, 1e3, 10_000).astype(np.float32)
    np.testing.assert_array_equal(standin.to_tf32(b), b.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("precision", ["tf32", "float16"])
@pytest.mark.parametrize(
    "model",
    [RBM(5), GaussianRBM(5), MPoT(6, n_mean_components=4), MPoT(6, learn_pools=False)],
    ids=["RBM", "GaussianRBM", "MPoT", "MPoT apart"],
)
def test_it_reaches_energies_gradients_and_trajectories(
    model: Any, precision: str, fake_cupy: Any
) -> None:
    """A change that is there, of the size of the rounding; gone when the setting is."""
    data = CASES[0].data if isinstance(model, RBM) else CASES[2].data
    data = data.astype(np.float32)
    generic = generic_params(model, data)
    params = {k: fake_cupy.asarray(v.astype(np.float32)) for k, v in generic.items()}
    x = fake_cupy.asarray(data[:20])
    weights = fake_cupy.asarray(np.full(20, 0.05, np.float32))

    def results() -> list[np.ndarray]:
        found = model.forward(params, x)
        grads = found.grad(weights)
        arrays = [found.energy(), *(grads[k] for k in sorted(grads))]
        if hasattr(model, "input_grad_function"):
            arrays.append(model.input_grad_function(params)(x))
        return [to_host(a).astype(float) for a in arrays]

    plain = results()
    with energyscape.matmul_precision(precision):
        rounded = results()
    for a, b in zip(plain, results(), strict=True):
        np.testing.assert_array_equal(a, b)
    changes = [abs(b - a).max() / abs(a).max() for a, b in zip(plain, rounded, strict=True)]
    # Energies and W's or C's gradient see it; 100 roundings are far more than a chain of three
    # products of a handful of terms can make, and far less than a product gone wrong.
    assert max(changes) < 100 * ROUNDING
    assert changes[0] > 0 and max(changes[1:]) > 0
    if hasattr(model, "input_grad_function"):
        assert changes[-1] > 0


def test_it_nests_and_comes_back(fake_cupy: Any) -> None:
    kinds = []

    def note() -> None:
        kinds.append((standin.Linalg.kind == standin.Linalg.COMPUTE_TYPE_TF32, _half()))

    def _half() -> bool:
        from energyscape.precision import half_inputs

        return half_inputs()

    with pytest.raises(RuntimeError), energyscape.matmul_precision("tf32"):
        note()
        with energyscape.matmul_precision("float16"):
            note()
            with energyscape.matmul_precision("float32"):
                note()
        note()
        raise RuntimeError
    note()
    assert kinds == [(True, False), (False, True), (False, False), (True, False), (False, False)]
    energyscape.matmul_precision("tf32")
    note()
    energyscape.matmul_precision("float32")
    note()
    assert kinds[5:] == [(True, False), (False, False)]


def test_models_train_with_either(fake_cupy: Any) -> None:
    data = CASES[0].data.astype(np.float32)
    weights = []
    for precision in ("float32", "tf32", "float16"):
        with energyscape.matmul_precision(precision):
            model = RBM(4, trainer=PCD(n_epochs=2), device="cuda", random_state=0).fit(data)
        weights.append(model.params_["W"])
    assert all(np.isfinite(w).all() and not (w == weights[0]).all() for w in weights[1:])


def test_without_a_gpu_it_says_that_nothing_changes(no_gpu: Any) -> None:
    for precision in ("tf32", "float16"):
        with pytest.warns(UserWarning, match="changes nothing here: CuPy is not installed"):
            energyscape.matmul_precision(precision)
    with energyscape.matmul_precision("float32"):
        assert not backend.gpu_status().usable


def test_what_cannot_be_had(fake_cupy: Any, monkeypatch: Any) -> None:
    with pytest.raises(ValueError, match="must be 'float32', 'tf32' or 'float16', got 'bf16'"):
        energyscape.matmul_precision("bf16")
    monkeypatch.setattr(standin._Device, "compute_capability", "75")
    with pytest.raises(
        DeviceError, match=r"needs compute capability 8\.0 or higher; stand-in has 7\.5"
    ):
        energyscape.matmul_precision("tf32")
    assert standin.Linalg.kind == standin.Linalg.COMPUTE_TYPE_DEFAULT


def test_cupy_has_what_is_asked_of_it() -> None:
    linalg = pytest.importorskip("cupy", reason="CuPy is not installed")._core._routines_linalg
    for name in ("get_compute_type", "set_compute_type", "tensordot_core_v11"):
        assert callable(getattr(linalg, name))
    assert linalg.COMPUTE_TYPE_DEFAULT == standin.Linalg.COMPUTE_TYPE_DEFAULT
    assert linalg.COMPUTE_TYPE_TF32 == standin.Linalg.COMPUTE_TYPE_TF32


def test_the_page_on_gpus_runs(fake_cupy: Any, capsys: Any) -> None:
    """Its blocks that need a device, on the stand-in."""
    page = (Path(__file__).parents[1] / "docs" / "gpu.md").read_text()
    found = re.findall(r"^<!-- on a GPU -->\n```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(found) == 2
    names: dict[str, Any] = {}
    for code in found:
        exec(code, names)
    assert capsys.readouterr().out == "numpy (1797, 16)\n"
