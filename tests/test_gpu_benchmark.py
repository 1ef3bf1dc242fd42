"""The GPU benchmark where there is no GPU: in small, on the stand-in, so that it cannot rot."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import standin

from energyscape.models import RBM, MPoT
from energyscape.samplers import HMC
from energyscape.trainers import PCD

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def gpu() -> Any:
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("benchmark_gpu", FOLDER / "gpu.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def _tiny(gpu: Any) -> Any:
    return gpu.Sizes(
        product=8,
        rbm=(9, 7, 12),
        small=(6, 5, 10),
        mpot=(6, 8, 4),
        batches=(12, 10),
        leaps=6,
        rounds=2,
        repeats=2,
        quick=3,
        seeds=2,
        epochs=1,
        conv=(20, 3, (3, 5)),
    )


def test_all_of_it_runs_and_is_told(gpu: Any, fake_cupy: Any) -> None:
    sizes = _tiny(gpu)
    record = gpu.measure(fake_cupy, sizes)
    assert {"product", "RBM", "RBM, plain", "small RBM", "mPoT, 12", "mPoT, P, 10"} <= set(
        record["ms"]
    )
    assert all(len(times) == 2 and min(times) > 0 for times in record["ms"].values())
    assert set(record["gaps"]) == set(record["ms"]) - {"product"}
    said = gpu.report(record, sizes, "a card")
    for words in ("a card", "(target 80%)", "(target 60%)", "PyTorch: not measured", "3×3", "nats"):
        assert words in said
    # What is emulated here has the errors that are told of the card: about 10 bits, and 23.
    for found in record["errors"].values():
        assert max(found["float32"]) < 1e-5
        assert 1e-5 < found["tf32"][1] < 1e-2 and 1e-5 < found["float16"][1] < 1e-2


def test_what_is_said_of_pytorch(gpu: Any, fake_cupy: Any) -> None:
    sizes = _tiny(gpu)
    record = gpu.measure(fake_cupy, sizes)
    for name in ("RBM, plain", "small RBM, plain", "mPoT, 12", "mPoT, 10"):
        for kind in ("eager", "compiled"):
            record["ms"][f"{name}: PyTorch {kind}"] = [2 * t for t in record["ms"][name]]
            record["flops"][f"{name}: PyTorch {kind}"] = record["flops"][name]
    assert gpu.report(record, sizes, "a card").count("2.00") == 8


@pytest.mark.parametrize("shape", [(90, 70, 120), (64, 50, 100)])
def test_operations_of_an_rbm_are_counted(gpu: Any, fake_cupy: Any, shape: Any) -> None:
    """As the stand-in counts them; vectors with matrices, which are left out, are 4 of 240 rows."""
    d, k, n = shape
    trainer = PCD(batch_size=n, n_chains=n)
    for centred in (True, False):
        step = gpu.update(RBM(k, centered=centred), trainer, gpu.rows(fake_cupy, n, d, True))
        standin.Counter.flops = 0
        step()
        assert standin.Counter.flops == pytest.approx(gpu.rbm_flops(*shape), rel=0.05)


@pytest.mark.parametrize("pools", [False, True])
def test_operations_of_an_mpot_are_counted(gpu: Any, fake_cupy: Any, pools: bool) -> None:
    """Within five of a hundred: sums weighted by vectors are left out."""
    d, k, m, n = 60, 80, 50, 150
    trainer = PCD(batch_size=n, n_chains=n, sampler=HMC(20, 0.01))
    model = MPoT(k, n_mean_components=m, learn_pools=pools)
    step = gpu.update(model, trainer, gpu.rows(fake_cupy, n, d, False))
    standin.Counter.flops = 0
    step()
    assert standin.Counter.flops == pytest.approx(gpu.mpot_flops(d, k, m, n, 20, pools), rel=0.05)


def test_without_a_gpu_nothing_is_written(
    gpu: Any, no_gpu: Any, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(gpu, "write", lambda *args: pytest.fail("a block was written"))
    with pytest.raises(SystemExit):
        gpu.main()
    assert "No GPU: CuPy is not installed" in capsys.readouterr().out


# PyTorch is a peer of the benchmarks and no oracle: a run that requires those may go without it.
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="there is no PyTorch here")
def test_pytorchs_steps_run(gpu: Any) -> None:
    import torch

    for step in (
        gpu.torch_rbm(torch, (9, 7, 12), "cpu"),
        gpu.torch_mpot(torch, (6, 8, 4), 12, 5, "cpu"),
    ):
        before = step.state.clone()
        step()
        assert torch.isfinite(step.state).all() and not torch.equal(before, step.state)
    v = step.state.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(step.energy(v).sum(), v)
    assert torch.allclose(step.slope(v), wanted, atol=1e-5)
