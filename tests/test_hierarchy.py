"""Stages are their formulas, their gradients central differences, and their way back a way back."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn
import standin
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import energyscape
from energyscape.backend import Purpose, stream, to_host
from energyscape.data import (
    FilterBank,
    Flatten,
    LocalContrastNormalize,
    PatchExtractor,
    Pool,
    RandomFilters,
    Rectify,
    Standardize,
)
from energyscape.errors import CapabilityError, DivergenceError
from energyscape.models import PSD, RBM, FineTunedPipeline
from energyscape.models.encoders import DoubleTanhEncoder, ShrinkEncoder, TanhEncoder
from energyscape.models.unrolled import CoupledLISTAEncoder, LISTAEncoder
from energyscape.optim import SGD, Constant
from energyscape.trainers import Backpropagation, EnergyLoss
from energyscape.trainers.base import Batch

RNG = np.random.default_rng(0)
MAPS = RNG.standard_normal((5, 7, 6, 3))
LEARN = {"trainer": EnergyLoss(n_epochs=1), "random_state": 0}
SMALL = {"n_patches": 200, "random_state": 0}


def psd(k: int = 4, encoder: Any = None) -> PSD:
    return PSD(k, encoder=TanhEncoder() if encoder is None else encoder, **LEARN)


def bank(k: int = 4, size: Any = 3, encoder: Any = None, **settings: Any) -> FilterBank:
    return FilterBank(psd(k, encoder), size, **(SMALL | settings))


STAGES = {
    "bank": bank(),
    "bank of groups": bank(size=(2, 3), n_inputs=2, n_groups=3),
    "bank shrink": bank(encoder=ShrinkEncoder()),
    "bank double tanh": bank(encoder=DoubleTanhEncoder()),
    "bank LISTA": bank(encoder=LISTAEncoder(1)),
    "bank coupled": bank(encoder=CoupledLISTAEncoder(1)),
    "bank random": FilterBank(RandomFilters(4, TanhEncoder()), 3, **SMALL),
    "rectify": Rectify(),
    "contrast": LocalContrastNormalize(1.0),
    "contrast floor": LocalContrastNormalize(1.0, floor=0.9),
    "mean": Pool("mean", 2),
    "mean overlapping": Pool("mean", (3, 2), 2),
    "max": Pool("max", 2),
    "max overlapping": Pool("max", 3, (2, 1)),
    "l2": Pool("l2", 2),
    "l2 overlapping": Pool("l2", (2, 3), (1, 2)),
    "standardize": Standardize(),
    "flatten": Flatten(),
}
each_stage = pytest.mark.parametrize("name", STAGES)


def fitted(name: str) -> Any:
    return clone(STAGES[name]).fit(MAPS)


# ---------------------------------------------------------------- what stages give


@pytest.mark.parametrize(
    "name", ["bank", "bank of groups", "bank shrink", "bank LISTA", "bank random"]
)
def test_maps_are_codes_of_every_patch(name: str) -> None:
    """Window by window, by the models' own transform."""
    stage = fitted(name)
    found = stage.transform(MAPS)
    fh, fw = stage.size if isinstance(stage.size, tuple) else (stage.size,) * 2
    maps = sum(len(m.components_) for m in stage.models_)
    assert found.shape == (5, 8 - fh, 7 - fw, maps)
    for i in range(8 - fh):
        for j in range(7 - fw):
            codes = [
                model.transform(MAPS[:, i : i + fh, j : j + fw][..., inputs].reshape(5, -1))
                for model, inputs in zip(stage.models_, stage.connections_, strict=True)
            ]
            np.testing.assert_allclose(found[:, i, j], np.hstack(codes), atol=1e-12)


@pytest.mark.parametrize("stage", [Flatten(), Pool("max", 1), Pool("mean", 1)], ids=repr)
def test_what_stages_give_is_nobody_elses(stage: Any) -> None:
    found = stage.fit_transform(MAPS)
    assert not np.shares_memory(found, MAPS)
    assert not np.shares_memory(stage.inverse_transform(found), found)


def test_groups_see_their_inputs_alone() -> None:
    stage = clone(STAGES["bank of groups"]).set_params(n_groups=4, random_state=1).fit(MAPS)
    assert stage.connections_.shape == (4, 2) and stage.filters_.shape == (16, 2, 3, 3)
    other = MAPS.copy()
    other[..., 0] += RNG.standard_normal(other.shape[:3])
    moved = (stage.transform(other) != stage.transform(MAPS)).any(axis=(0, 1, 2))
    seen = np.repeat((stage.connections_ == 0).any(axis=1), 4)
    np.testing.assert_array_equal(moved, seen)
    assert 0 < seen.sum() < 16
    unconnected = [np.setdiff1d(range(3), inputs) for inputs in stage.connections_]
    for filters, out in zip(stage.filters_.reshape(4, 4, 2, 3, 3), unconnected, strict=True):
        assert not filters[..., out].any()
    np.testing.assert_allclose((stage.filters_**2).sum(axis=(1, 2, 3)), 1)


def test_a_bank_learns_from_patches_that_vary(caplog: Any) -> None:
    """The model sees what `PatchExtractor` cuts, less what is flat, and says how much that is."""
    images = MAPS[..., :1].copy()
    images[:, :, :3] = 0.3
    with caplog.at_level("INFO", "energyscape"):
        stage = bank().fit(images)
    patches = PatchExtractor(3, 200, random_state=0).fit_transform(images)
    varied = patches[np.ptp(patches, axis=1) > 0]
    assert 0 < stage.n_flat_ == 200 - len(varied)
    assert f"FilterBank: left out {stage.n_flat_} flat patches of 200" in caplog.text
    alone = psd().fit(varied)
    np.testing.assert_array_equal(alone.components_, stage.models_[0].components_)
    with pytest.raises(ValueError, match="no patch of 3×3 that varies, of 200"):
        bank().fit(np.full((2, 6, 6), 0.1))
    least = clone(stage).set_params(flat=0.9).fit(MAPS)
    assert least.n_flat_ > clone(stage).fit(MAPS).n_flat_ == 0


def test_a_bank_takes_a_fitted_model_as_it_is() -> None:
    model = psd().fit(PatchExtractor(3).fit_transform(MAPS))
    stage = FilterBank(FrozenEstimator(model), 3, **SMALL).fit(MAPS)
    assert stage.models_[0] is model
    found = stage.transform(MAPS)[:, 1, 2]
    np.testing.assert_allclose(found, model.transform(MAPS[:, 1:4, 2:5].reshape(5, -1)))


def test_pools_are_their_windows() -> None:
    functions = {
        "mean": np.mean,
        "max": np.max,
        "l2": lambda v, axis: np.sqrt(np.mean(v**2, axis=axis)),
    }
    for kind, of in functions.items():
        for (sh, sw), (down, across) in (((2, 2), (2, 2)), ((3, 2), (1, 3)), ((7, 6), (1, 1))):
            found = Pool(kind, (sh, sw), (down, across)).fit_transform(MAPS)
            wanted = [
                [of(MAPS[:, i : i + sh, j : j + sw], axis=(1, 2)) for j in range(0, 7 - sw, across)]
                for i in range(0, 8 - sh, down)
            ]
            if sw == 2:
                assert found.shape[1:3] == (len(wanted), len(wanted[0]))
                np.testing.assert_allclose(found, np.moveaxis(wanted, 2, 0), atol=1e-14)
            else:
                np.testing.assert_allclose(found[:, 0, 0], of(MAPS, axis=(1, 2)), atol=1e-14)


def test_the_constant_of_contrast() -> None:
    """1 on the input divides nothing by less; between stages it is the mean of σ."""
    plain, floor = LocalContrastNormalize(1.0), LocalContrastNormalize(1.0, floor=100.0)
    v = plain.fit(MAPS).transform(MAPS) * plain._kept[0][1][0]
    np.testing.assert_allclose(floor.fit_transform(MAPS), v / 100, atol=1e-14)
    sigma = plain.forward({}, MAPS)[1][1]
    divisor = np.maximum(sigma, sigma.mean(axis=(1, 2, 3), keepdims=True))
    np.testing.assert_allclose(plain._kept[0][1][0], divisor)
    with pytest.raises(ValueError, match="floor must be None or > 0"):
        LocalContrastNormalize(floor=0.0).fit(MAPS)


def test_absolute_values_and_rows() -> None:
    np.testing.assert_array_equal(Rectify().fit_transform(MAPS), np.abs(MAPS))
    np.testing.assert_array_equal(Flatten().fit_transform(MAPS), MAPS.reshape(5, -1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_standardised_maps_have_no_mean_and_variance_one(dtype: Any) -> None:
    x = (5 + MAPS * np.arange(1.0, 4.0)).astype(dtype)
    x[:, 0, 0, 0] = 0.1  # constant: to 0, but for rounding
    y = Standardize().fit_transform(x)
    close = {"atol": 30 * np.finfo(dtype).eps}
    np.testing.assert_allclose(y.mean(axis=0), 0, **close)
    on = np.ones(y.shape[1:], bool)
    on[0, 0, 0] = False
    np.testing.assert_allclose(y.std(axis=0)[on], 1, **close)
    np.testing.assert_allclose(y[:, 0, 0, 0], 0, **close)
    stage = Standardize().fit(x)
    np.testing.assert_allclose(stage.inverse_transform(stage.transform(x)), x, rtol=1e-5)


# ---------------------------------------------------------------- gradients


def _differences(loss: Any, value: np.ndarray, step: float = 1e-6) -> np.ndarray:
    flat, found = value.reshape(-1), np.empty(value.size)
    for i, kept in enumerate(flat.copy()):
        at = []
        for sign in (step, -step):
            flat[i] = kept + sign
            at.append(loss())
        flat[i] = kept
        found[i] = (at[0] - at[1]) / (2 * step)
    return found.reshape(value.shape)


@each_stage
def test_backward_is_central_differences(name: str) -> None:
    """Of ⟨y, dy⟩ in the maps and in all arrays: step 1e-6, rounding 1e-16/1e-6 of sums of a
    hundred terms, curvature 1e-12. Kinks (shrinkage, maxima, |x|) are crossed with probability
    1e-4 and were not."""
    stage = fitted(name)
    params = {key: value.copy() for key, value in stage.trainable().items()}
    x = MAPS[:2].copy()
    y, cache = stage.forward(params, x)
    dy = np.random.default_rng(1).standard_normal(y.shape)
    kept = [v.copy() for v in (x, dy, *params.values())]
    grads, dx = stage.backward(params, cache, dy)
    for before, after in zip(kept, (x, dy, *params.values()), strict=True):
        np.testing.assert_array_equal(before, after)

    def loss() -> float:
        return float((stage.forward(params, x)[0] * dy).sum())

    np.testing.assert_allclose(dx, _differences(loss, x), atol=2e-7)
    assert grads.keys() == params.keys()
    for key, value in params.items():
        np.testing.assert_allclose(grads[key], _differences(loss, value), atol=1e-6, err_msg=key)
        assert np.abs(grads[key]).max() > 0
    if params:
        assert stage.backward(params, cache, dy, need_dx=False)[1] is None


@pytest.mark.parametrize("name", ["contrast", "contrast floor"])
def test_gradients_of_contrast_see_the_divisor(name: str) -> None:
    """A negative control: the divisor taken as a constant gives another gradient."""
    stage = fitted(name)
    y, cache = stage.forward({}, MAPS[:2])
    dy = np.random.default_rng(1).standard_normal(y.shape)
    _, deviation, divisor, _ = cache
    assert 0.1 < (deviation < divisor).mean() < 0.9  # both branches are taken
    constant = dy / divisor
    constant = (
        constant
        - (stage._windows(dy)[0].T @ constant.sum(3) @ stage._windows(dy)[1])[..., None] / 3
    )
    assert np.abs(stage.backward({}, cache, dy)[1] - constant).max() > 0.05


@pytest.mark.parametrize("name", ["mean", "mean overlapping", "flatten"])
def test_linear_stages_have_adjoints(name: str) -> None:
    stage = fitted(name)
    y, cache = stage.forward({}, MAPS)
    other = RNG.standard_normal(y.shape)
    assert (y * other).sum() == pytest.approx((MAPS * stage.backward({}, cache, other)[1]).sum())


def test_gradients_are_additive_over_rows() -> None:
    stage = fitted("bank of groups")
    params = stage.trainable()
    dy = RNG.standard_normal(stage.transform(MAPS).shape)
    whole = stage.backward(params, stage.forward(params, MAPS)[1], dy)
    parts = [
        stage.backward(params, stage.forward(params, MAPS[rows])[1], dy[rows])
        for rows in (slice(0, 2), slice(2, 5))
    ]
    for key, value in whole[0].items():
        np.testing.assert_allclose(parts[0][0][key] + parts[1][0][key], value, atol=1e-12)
    np.testing.assert_allclose(np.concatenate([p[1] for p in parts]), whole[1], atol=1e-13)


# ---------------------------------------------------------------- the way back


@pytest.mark.parametrize("kind", ["mean", "max", "l2"])
@pytest.mark.parametrize("shape", [(4, 6, 6), (4, 6, 6, 2), (4, 7, 5, 2)])
def test_pools_of_what_comes_back_are_the_same(kind: str, shape: tuple[int, ...]) -> None:
    maps = np.abs(RNG.standard_normal(shape))
    pool = Pool(kind, 2).fit(maps)
    pooled = pool.transform(maps)
    back = pool.inverse_transform(pooled)
    assert back.shape == maps.shape
    np.testing.assert_allclose(pool.transform(back), pooled, atol=1e-14)
    if kind == "max":
        on = back != 0
        np.testing.assert_array_equal(back[on], maps[on])
        assert on.sum() == pooled.size


def test_overlapping_maxima_are_found_again() -> None:
    maps = np.abs(MAPS)
    pool = Pool("max", 3, 1).fit(maps)
    pooled = pool.transform(maps)
    back = pool.inverse_transform(pooled)
    np.testing.assert_allclose(pool.transform(back), pooled, rtol=1e-14)
    on = back != 0
    np.testing.assert_allclose(back[on], maps[on])
    assert on.sum() < pooled.size
    # Others at the same places: switches are those of the last transform.
    np.testing.assert_allclose(
        pool.inverse_transform(pooled), pool.inverse_transform(2 * pool.transform(maps)) / 2
    )


def test_signs_and_contrast_come_back() -> None:
    rectify, contrast = Rectify().fit(MAPS), LocalContrastNormalize(1.0).fit(MAPS)
    np.testing.assert_array_equal(rectify.inverse_transform(rectify.transform(MAPS)), MAPS)
    y = contrast.transform(MAPS)
    back = contrast.inverse_transform(y)
    # The local mean is what is not put back.
    away = MAPS - back
    np.testing.assert_allclose(away, away[..., :1] * np.ones(3), atol=1e-14)
    assert not contrast.inverse_transform(0 * y).any()


def test_a_bank_leads_back_by_its_atoms() -> None:
    """One code at one place is its atom there, over the number of patches that cover a pixel; codes
    that explain all patches give the images again."""
    for name in ("bank", "bank of groups"):
        stage = fitted(name)
        maps = np.zeros((1, *stage.shape_out(stage.image_shape_)))
        maps[0, 2, 1, 5 if name == "bank of groups" else 2] = 1.5
        k = int(np.flatnonzero(maps.any(axis=(0, 1, 2)))[0])
        fh, fw = stage.filters_.shape[1:3]
        cover = np.zeros((7, 6, 3))
        for i in range(8 - fh):
            for j in range(7 - fw):
                for inputs in stage.connections_:
                    cover[i : i + fh, j : j + fw, inputs] += 1
        wanted = np.zeros((7, 6, 3))
        wanted[2 : 2 + fh, 1 : 1 + fw] = 1.5 * stage.filters_[k]
        np.testing.assert_allclose(
            stage.inverse_transform(maps)[0], wanted / np.maximum(cover, 1), atol=1e-14
        )
    whole = FilterBank(RandomFilters(27, TanhEncoder(), 0), 3, **SMALL).fit(MAPS)
    atoms = whole.models_[0].components_
    patches = PatchExtractor(3).fit_transform(MAPS)
    codes = np.linalg.solve(atoms.T, patches.T).T.reshape(5, 5, 4, 27)
    np.testing.assert_allclose(whole.inverse_transform(codes), MAPS, atol=1e-9)


def test_pipelines_lead_back() -> None:
    """All stages of a hierarchy, whose last row alone says that it is no other's."""
    stages = make_pipeline(
        LocalContrastNormalize(1.0), bank(), Rectify(), Pool("max", 2), Flatten()
    )
    rows = stages.fit_transform(MAPS)
    assert rows.shape == (5, 2 * 2 * 4)
    back = stages.inverse_transform(rows)
    assert back.shape == MAPS.shape and np.isfinite(back).all()
    # Linear, given the switches.
    np.testing.assert_allclose(stages.inverse_transform(2 * rows), 2 * back, atol=1e-14)
    one = stages.transform(MAPS[1:2])
    np.testing.assert_allclose(stages.inverse_transform(one), back[1:2], atol=1e-13)


@pytest.mark.parametrize("name", ["rectify", "contrast", "max"])
def test_switches_belong_to_rows(name: str) -> None:
    stage = fitted(name)
    with pytest.raises(ValueError, match=r"which had 0 row\(s\); X has 5"):
        stage.inverse_transform(MAPS if name != "max" else MAPS[:, :3, :3])
    y = stage.transform(MAPS)
    with pytest.raises(ValueError, match=r"which had 5 row\(s\); X has 2. Call transform"):
        stage.inverse_transform(y[:2])
    again = pickle.loads(pickle.dumps(stage))
    with pytest.raises(ValueError, match=r"had 0 row\(s\)"):
        again.inverse_transform(y)
    with pytest.raises(ValueError, match="leads back floats of shape"):
        stage.inverse_transform(y[:, :1])


@each_stage
def test_blocks_do_not_matter(name: str) -> None:
    """One row at a time, up and down: to the order of sums."""
    stage = fitted(name)
    y = stage.transform(MAPS)
    back = stage.inverse_transform(y)
    with sklearn.config_context(working_memory=1e-4):
        np.testing.assert_allclose(stage.transform(MAPS), y, atol=1e-12)
        np.testing.assert_allclose(stage.inverse_transform(y), back, atol=1e-12)


# ---------------------------------------------------------------- what all share


@each_stage
def test_containers_and_dtypes_are_kept(name: str, cupy: Any) -> None:
    kept = MAPS.copy()
    for dtype in (np.float32, np.float64):
        x = MAPS.astype(dtype)
        here = fitted(name)
        host = here.transform(x)
        down = here.inverse_transform(host)
        assert host.dtype == down.dtype == dtype
        device = here.transform(cupy.asarray(x))
        back = here.inverse_transform(device)
        assert isinstance(device, cupy.ndarray) and isinstance(back, cupy.ndarray)
        assert device.dtype == back.dtype == dtype
        # Sums of up to 27 terms of order 1.
        close = {"atol": 200 * np.finfo(dtype).eps}
        np.testing.assert_allclose(to_host(device), host, **close)
        np.testing.assert_allclose(to_host(back), down, **close)
        params = here._arrays(cupy.asarray(x))
        y, cache = here.forward(params, cupy.asarray(x))
        dx = here.backward(params, cache, y)[1]
        assert isinstance(dx, cupy.ndarray) and dx.dtype == dtype
    np.testing.assert_array_equal(MAPS, kept)
    grey = clone(STAGES[name]).set_params(**({"n_inputs": None} if "groups" in name else {}))
    flat, deep = grey.fit_transform(MAPS[..., 0]), grey.fit_transform(MAPS[..., :1])
    np.testing.assert_array_equal(flat.ravel(), deep.ravel())
    assert clone(grey).fit_transform((99 * MAPS).astype(np.int8)).dtype == np.float32


@pytest.mark.parametrize("name", ["bank of groups", "contrast", "max", "standardize"])
def test_stored_images_are_read_by_blocks(name: str, tmp_path: Path) -> None:
    stored = np.lib.format.open_memmap(
        tmp_path / "x.npy", mode="w+", dtype=np.float64, shape=MAPS.shape
    )
    stored[:] = MAPS
    stage = clone(STAGES[name]).fit(stored)
    np.testing.assert_allclose(stage.transform(stored), fitted(name).transform(MAPS), atol=1e-14)


def test_banks_are_fitted_on_the_device(cupy: Any) -> None:
    x = cupy.asarray(MAPS)
    for model in (psd(), RandomFilters(4, TanhEncoder(), 0)):
        stage = FilterBank(model, 3, n_inputs=2, n_groups=2, **SMALL).fit(x)
        assert isinstance(stage.filters_, cupy.ndarray)
        found = stage.transform(x)
        assert isinstance(found, cupy.ndarray)
        here = pickle.loads(pickle.dumps(stage))
        np.testing.assert_allclose(here.transform(MAPS), to_host(found), atol=1e-12)


@each_stage
def test_stages_are_cloned_pickled_and_saved(name: str, tmp_path: Path) -> None:
    stage = fitted(name)
    y = stage.transform(MAPS)
    stage.save(tmp_path / "stage.h5")
    for again in (
        pickle.loads(pickle.dumps(stage)),
        energyscape.load(tmp_path / "stage.h5"),
        clone(stage).fit(MAPS),
    ):
        assert repr(again) == repr(stage) and again.image_shape_ == (7, 6, 3)
        np.testing.assert_array_equal(again.transform(MAPS), y)
        np.testing.assert_array_equal(again.inverse_transform(y), stage.inverse_transform(y))
    tags = stage.__sklearn_tags__().input_tags
    assert tags.three_d_array and not tags.two_d_array


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (bank(size=8), r"filters of 8×8 do not fit into images of 7×6"),
        (bank(size=0), r"FilterBank.size must be an int >= 1"),
        (bank(n_inputs=4), r"n_inputs asks for 4 maps, there are 3"),
        (bank(n_inputs=0), r"n_inputs must be an integer >= 1"),
        (bank(n_groups=0), r"n_groups must be an integer >= 1"),
        (bank(flat=1.0), r"flat must lie in \[0, 1\)"),
        (Pool("median"), r"kind must be 'mean', 'max' or 'l2'"),
        (Pool("max", 8), r"windows of 8×8 do not fit into maps of 7×6"),
        (Pool("max", 2, 0), r"Pool.stride must be an int >= 1"),
    ],
    ids=repr,
)
def test_bad_settings_are_named(stage: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stage.fit(MAPS)


def test_other_maps_are_refused() -> None:
    for name in STAGES:
        with pytest.raises(ValueError, match=r"fitted to images of shape \(7, 6, 3\)"):
            fitted(name).transform(MAPS[..., :2])
    with pytest.raises(CapabilityError, match=r"PSD, LISTA or RandomFilters, and RBM has none"):
        FilterBank(RBM(3), 3).fit(MAPS)
    with pytest.raises(AttributeError, match="no filters_ before fit"):
        _ = FilterBank().filters_


@parametrize_with_checks([RandomFilters(3)])
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_random_filters_are_of_all_directions() -> None:
    """Norm 1; the mean of 300 atoms is 0 within 6 errors of each of 9 entries (false alarm
    2e-8)."""
    model = RandomFilters(300, TanhEncoder(), random_state=0).fit(RNG.random((50, 9)))
    atoms = model.components_
    np.testing.assert_allclose((atoms**2).sum(axis=1), 1)
    assert (np.abs(atoms.mean(axis=0)) < 6 / math.sqrt(9 * 300)).all()
    assert (RandomFilters(5, random_state=1).fit(atoms).components_ != atoms[:5]).all()


# ---------------------------------------------------------------- fine-tuning


def labelled(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Bars that lie or stand, anywhere, and noise."""
    rng = np.random.default_rng(2)
    y = rng.integers(0, 3, n)
    images = 0.3 * rng.standard_normal((n, 8, 8))
    for image, kind, at in zip(images, y, rng.integers(1, 7, n), strict=True):
        if kind == 1:
            image[at] += 2
        elif kind == 2:
            image[:, at] += 2
    return images, y


X, Y = labelled()


def stages(encoder: Any = None, pool: str = "mean") -> Pipeline:
    steps = [
        LocalContrastNormalize(1.0),
        bank(encoder=encoder),
        Rectify(),
        LocalContrastNormalize(1.0),
        Pool(pool, 2),
        bank(3, 2, encoder, n_inputs=2, n_groups=2),
        Rectify(),
    ]
    return make_pipeline(*steps)


SHORT = Backpropagation(n_epochs=3, batch_size=20)


def tuned(model: Any = None, trainer: Any = SHORT) -> FineTunedPipeline:
    model = stages() if model is None else model
    return FineTunedPipeline(model, trainer=trainer, random_state=0).fit(X, Y)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(
    ("encoder", "pool"),
    [(None, "mean"), (ShrinkEncoder(), "max"), (None, "l2")],
    ids=["tanh", "shrink", "l2"],
)
def test_gradients_of_hierarchies_are_central_differences(
    encoder: Any, pool: str, dropout: float
) -> None:
    """Of the mean loss on a batch, at a softmax that is not 0: step 1e-5, to 1e-7."""
    model = tuned(stages(encoder, pool))
    trainer = Backpropagation(dropout=dropout)
    params = {k: v.copy() for k, v in model._params.items()}
    params["W"] += 0.1 * np.random.default_rng(3).standard_normal(params["W"].shape)
    batch = Batch(X[:3], 3, Y[:3])

    def loss() -> float:
        drop = trainer._drop(stream(0, Purpose.COLLECT)) if dropout else None
        return float(model.label_loss(model.network(params, batch.x, drop)[-1].h, batch.y).mean())

    sums = trainer.collect(model, params, {}, batch, stream(0, Purpose.COLLECT))
    assert sums.keys() == params.keys() and {"filterbank-1/W1", "filterbank-2/c2"} <= sums.keys()
    for key, value in params.items():
        np.testing.assert_allclose(
            sums[key], _differences(loss, value, 1e-5), atol=1e-7, err_msg=key
        )
        assert np.abs(sums[key]).max() > 0


def test_it_begins_with_the_features_of_the_pipeline() -> None:
    still = Backpropagation(n_epochs=1, learning_rate=1e-300)
    model = tuned(trainer=still)
    features = model.model_.transform(X)
    np.testing.assert_allclose(model.network(model._params, X)[-2].h, features, atol=1e-12)
    np.testing.assert_allclose(model.predict_proba(X), 1 / 3)
    assert model.history_["loss_train"][0] == pytest.approx(math.log(3))


def test_it_learns_and_leaves_the_pipeline_alone() -> None:
    """Far below the loss of a softmax that knows nothing, with filters that moved."""
    model = tuned(trainer=Backpropagation(n_epochs=40, batch_size=20))
    assert model.history_["loss_train"][-1] < 0.3 * math.log(3) and model.score(X, Y) > 0.9
    before = model.model_.named_steps["filterbank-1"].trainable()
    for key, value in before.items():
        assert (model.params_[f"filterbank-1/{key}"] != value).any()
    fresh, labels = labelled(200)
    assert model.score(fresh[60:], labels[60:]) > 0.7
    assert model.coefs_[0].shape == (model.network(model._params, X)[-1].x.shape[1], 3)


def test_arrays_move_in_their_units() -> None:
    """Plain gradient descent in coordinates θ/u is θ - rate u² ∂L/∂θ, u the root mean square; one
    step by hand, with weight decay of the softmax in units, and thresholds reflected at 0."""
    for encoder in (TanhEncoder(), ShrinkEncoder()):
        optimizer = SGD(3.0, l2=0.1, schedule=Constant())
        once = Backpropagation(n_epochs=1, batch_size=60, optimizer=optimizer)
        model = tuned(stages(encoder), once)
        start = tuned(stages(encoder), Backpropagation(n_epochs=1, learning_rate=1e-300))
        grads = start.network_grad(start.network(start._params, X), Y, 1 / 60)
        bank1 = start.model_.named_steps["filterbank-1"]
        for key, value in start._params.items():
            unit = start._rates.get(key, 1.0)
            decay = 1 + 3.0 * 0.1 if key == "W" else 1.0
            wanted = (value - 3.0 * unit**2 * grads[key]) / decay
            if "theta" in key:
                wanted = np.abs(wanted)
            np.testing.assert_allclose(model._params[key], wanted, atol=1e-10, err_msg=key)
        W = bank1.trainable()["W1"]
        assert start._rates["filterbank-1/W1"] == pytest.approx(math.sqrt((W**2).mean()))


def test_frozen_pipelines_files_and_copies(tmp_path: Path) -> None:
    below = stages().fit(X)
    model = tuned(FrozenEstimator(below), clone(SHORT).set_params(averaging=1.0))
    assert model.model_ is below
    with pytest.warns(UserWarning, match="FrozenEstimator is not stored"):
        model.save(tmp_path / "frozen.h5")
    own = tuned()
    own.save(tmp_path / "own.h5")
    for one, path in ((model, "frozen.h5"), (own, "own.h5")):
        for again in (energyscape.load(tmp_path / path), pickle.loads(pickle.dumps(one))):
            np.testing.assert_array_equal(again.predict_proba(X), one.predict_proba(X))
            assert again.image_shape_ == (8, 8) and again.n_features_in_ == 64
            assert again.params_.keys() == one.params_.keys()
    np.testing.assert_array_equal(clone(own).fit(X, Y).predict_proba(X), own.predict_proba(X))
    own._state.params["W"] = own._state.params["W"][:, :-1]
    own.save(tmp_path / "own.h5")
    with pytest.raises(energyscape.errors.FileFormatError, match="parameters have shapes"):
        energyscape.load(tmp_path / "own.h5")
    energyscape.save(below, tmp_path / "stages.h5")
    loaded = energyscape.load(tmp_path / "stages.h5")
    H = below.transform(X)
    np.testing.assert_array_equal(loaded.transform(X), H)
    np.testing.assert_array_equal(loaded.inverse_transform(H), below.inverse_transform(H))


def test_a_hierarchy_on_the_device(fake_cupy: Any) -> None:
    x = fake_cupy.asarray(X.astype(np.float32))
    trainer = Backpropagation(n_epochs=2, batch_size=20, dropout=0.2, validation_fraction=0.2)
    model = FineTunedPipeline(stages(), trainer=trainer, random_state=0).fit(x, Y)
    p = model.predict_proba(x)
    assert isinstance(p, fake_cupy.ndarray) and p.dtype == np.float32
    assert isinstance(model.params_["filterbank-2/W1"], fake_cupy.ndarray)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_allclose(again.predict_proba(X), to_host(p), atol=1e-5)


def test_an_epoch_waits_for_the_device_once(fake_cupy: Any) -> None:
    below = stages().fit(X.astype(np.float32))
    counts = []
    for size in (60, 20):
        trainer = Backpropagation(n_epochs=1, batch_size=size)
        x = fake_cupy.asarray(X.astype(np.float32))
        standin.Counter.syncs = 0
        FineTunedPipeline(FrozenEstimator(below), trainer=trainer, random_state=0).fit(x, Y)
        counts.append(standin.Counter.syncs)
    assert counts[0] == counts[1]


def test_what_cannot_be_fine_tuned_is_said() -> None:
    with pytest.raises(CapabilityError, match=r"needs a Pipeline of stages"):
        FineTunedPipeline().fit(X, Y)
    with pytest.raises(CapabilityError, match=r"'logisticregression' \(LogisticRegression\)"):
        FineTunedPipeline(make_pipeline(Rectify(), LogisticRegression())).fit(X, Y)
    with pytest.raises(ValueError, match="not fitted yet"):
        FineTunedPipeline(FrozenEstimator(make_pipeline(Rectify()))).fit(X, Y)
    with pytest.raises(ValueError, match="the target y is None: FineTunedPipeline"):
        FineTunedPipeline(make_pipeline(Rectify())).fit(X, None)
    with pytest.raises(ValueError, match=r"shape \(8, 8\), X has images of shape \(7, 8\)"):
        tuned().predict(X[:, :7])
    wild = Backpropagation(n_epochs=3, batch_size=20, learning_rate=1e200)
    with pytest.raises(DivergenceError, match="FineTunedPipeline met numbers"):
        tuned(trainer=wild)
    for name in ("coefs_", "params_", "history_", "model_"):
        assert not hasattr(FineTunedPipeline(), name)


def test_without_filters_it_is_a_softmax() -> None:
    """Stages that learn nothing: the optimum of logistic regression on their features, to 1e-2."""
    optimizer = SGD(0.5, l2=0.05, schedule=Constant())
    trainer = Backpropagation(n_epochs=300, batch_size=60, optimizer=optimizer)
    below = make_pipeline(Rectify(), Pool("max", 4), Flatten())
    model = FineTunedPipeline(below, trainer=trainer, random_state=0).fit(X, Y)
    assert not any(hasattr(step, "_kept") for _, step in model.model_.steps), "switches of all rows"
    H = below.fit_transform(X)
    unit = model._rates["W"]
    peer = LogisticRegression(C=1 / (60 * 0.05) * 1.0, tol=1e-10, max_iter=5000).fit(H * unit, Y)
    np.testing.assert_allclose(model.predict_proba(X), peer.predict_proba(H * unit), atol=1e-2)
