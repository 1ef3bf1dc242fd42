"""A GPU whose memory is full: the error says what was asked for and what would fit."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import standin
from cases import CASES, short
from sklearn.pipeline import make_pipeline

from energyscape import memory
from energyscape.backend import Purpose, stream
from energyscape.data import FilterBank, Pool, RandomFilters, Rectify
from energyscape.errors import DeviceError
from energyscape.memory import measured_needs
from energyscape.models import RBM, FineTunedClassifier, FineTunedPipeline, KMeans, MPoT, PoT
from energyscape.samplers import HMC
from energyscape.trainers import CD, NCE, PCD, Backpropagation, DenoisingScoreMatching

BITS = (np.random.default_rng(0).random((3000, 200)) < 0.3).astype(np.float32)


@pytest.fixture
def little(fake_cupy: Any, monkeypatch: Any) -> Any:
    """A device that has 8 MB, and no array of more than 2."""
    for name, value in (
        ("largest", 2e6),
        ("total", 16 << 20),
        ("free", 3 << 20),
        ("pooled", 5 << 20),
    ):
        monkeypatch.setattr(standin.Memory, name, value)
    return fake_cupy


def _said(model: Any, X: Any) -> str:
    with pytest.raises(DeviceError) as caught:
        model.fit(X)
    return str(caught.value)


def test_it_says_what_was_asked_for_and_what_would_fit(little: Any) -> None:
    trainer = PCD(batch_size=3000, n_chains=2000, n_epochs=1)
    said = _said(RBM(100, trainer=trainer, device="cuda", random_state=0), BITS)
    assert re.search(
        r"RBM by PCD ran out of memory on cuda:0: an array of 2\.4 MB found no room; of 16\.8 MB "
        r"this process can have 8\.39 MB\. Parameters with what belongs to them take about "
        r"\d+ kB, a row of a batch with its share of the chains [\d.]+ kB: batch_size=\d+ with "
        r"n_chains=\d+ would fit",
        said,
    ), said
    batch, chains = (
        int(n) for n in re.search(r"batch_size=(\d+) with n_chains=(\d+)", said).groups()
    )
    # In the proportion that was asked for, to the two digits that are given.
    assert 1.3 < batch / chains < 1.7
    fitted = RBM(100, trainer=PCD(batch_size=batch, n_chains=chains, n_epochs=1), random_state=0)
    standin.Memory.largest = np.inf
    # What an update of such a batch takes, measured by itself.
    params = fitted.fit(BITS[:500]).params_
    needs = max(memory._peaks(fitted, fitted.trainer_, params, BITS[:48], batch, chains))
    assert 0.8 * 0.9 * (8 << 20) < needs < 0.9 * (8 << 20)


@pytest.mark.parametrize(
    ("model", "trainer"),
    [
        (RBM(50), PCD()),
        (RBM(50), CD()),
        (RBM(50), NCE()),
        (MPoT(64, n_mean_components=32), PCD(sampler=HMC(3, 0.01))),
        (PoT(80), DenoisingScoreMatching()),
    ],
    ids=["RBM PCD", "RBM CD", "RBM NCE", "MPoT PCD", "PoT DSM"],
)
def test_needs_of_few_rows_tell_those_of_many(model: Any, trainer: Any) -> None:
    """Peaks of 400 rows and more or fewer chains from those of two small updates: within a
    tenth, for another sum may be the largest one by then."""
    x = (
        BITS[:48]
        if isinstance(model, RBM)
        else BITS[:48] + np.random.default_rng(1).random((48, 200))
    )
    x = x.astype(np.float32)
    params = model.init_params(x, stream(0, Purpose.INIT))
    for share in (0.5, 1.0, 2.0):
        needs = measured_needs(model, trainer, params, x, share)
        wanted = max(memory._peaks(model, trainer, params, x, 400, int(400 * share)))
        assert 0.9 * wanted < needs.of(400) < 1.1 * wanted


def test_where_nothing_fits_or_everything_should(little: Any, monkeypatch: Any) -> None:
    trainer = PCD(batch_size=3000, n_chains=2000, n_epochs=1)
    model = RBM(100, trainer=trainer, device="cuda", random_state=0)
    monkeypatch.setattr(standin.Memory, "free", 1 << 34)
    assert "should fit, so that something else holds the memory" in _said(model, BITS)
    for name in ("free", "pooled"):
        monkeypatch.setattr(standin.Memory, name, 1 << 10)
    assert "no batch fits. Fewer components or features" in _said(model, BITS)


def test_before_the_first_update_and_for_sums_over_all_rows(little: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(standin.Memory, "largest", 1e4)
    assert "batch_size=" in _said(RBM(100, trainer=PCD(batch_size=2000), device="cuda"), BITS)
    said = _said(KMeans(3, device="cuda", random_state=0), BITS)
    assert "EM reads rows in blocks of its own size" in said


def test_networks_that_learn_from_labels(little: Any) -> None:
    y = (BITS[:, 0] > 0).astype(int)
    below = RBM(100, trainer=PCD(batch_size=100, n_epochs=1), random_state=0)
    trainer = Backpropagation(batch_size=3000, n_epochs=1)
    classifier = FineTunedClassifier(below, trainer=trainer, device="cuda", random_state=0)
    bank = FilterBank(RandomFilters(8), 5, n_patches=500)
    stages = make_pipeline(bank, Rectify(), Pool("mean", 2))
    pipeline = FineTunedPipeline(stages, trainer=trainer, device="cuda", random_state=0)
    for model, X in ((classifier, BITS), (pipeline, BITS[:, :196].reshape(-1, 14, 14))):
        with pytest.raises(DeviceError) as caught:
            model.fit(X, y)
        assert re.search(r"a row of a batch [\d.]+ kB: batch_size=\d+ would fit", str(caught.value))


def test_other_errors_are_left_alone(fake_cupy: Any) -> None:
    def stop(*args: Any) -> None:
        raise MemoryError("of the host")

    trainer = PCD(n_epochs=1, callbacks=[stop])
    with pytest.raises(MemoryError, match="of the host"):
        RBM(3, trainer=trainer, device="cuda").fit(BITS[:200])


@pytest.mark.parametrize("case", CASES[:1] + CASES[6:40:3], ids=lambda c: c.name)
def test_needs_can_be_told_of_any_model(case: Any) -> None:
    model = case.make()
    trainer = short(case.trainers[0])
    if trainer.every == "epoch":
        pytest.skip("sums over all rows have no batch")
    x = case.data.astype(np.float32)
    params = model.init_params(x, stream(0, Purpose.INIT))
    needs = measured_needs(model, trainer, params, x[:16])
    assert needs.row >= x[0].nbytes
