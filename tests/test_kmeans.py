"""K-means against scikit-learn, dynamic programming, and its own definition."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import standin
from sklearn.base import clone
from sklearn.cluster import KMeans as Reference
from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus
from sklearn.datasets import load_digits, load_iris, make_blobs
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks
from streams import ReplayStream

import energyscape
from energyscape.backend import Purpose, stream, to_host
from energyscape.errors import CapabilityError, UnnormalizedScoreWarning
from energyscape.evaluation.laws import generic_params
from energyscape.models import kmeans
from energyscape.models.kmeans import KMeans
from energyscape.trainers import CD, EM, ClosedForm

pytestmark = pytest.mark.filterwarnings("ignore::energyscape.errors.UnnormalizedScoreWarning")

BLOBS = make_blobs(600, 5, centers=6, cluster_std=1.5, random_state=0)[0]
SETS = {"iris": load_iris().data, "digits": load_digits().data, "blobs": BLOBS, "far": BLOBS + 1e4}


def start_at(model: KMeans, x: np.ndarray, centres: np.ndarray) -> dict[str, Any]:
    return model.init_params(x, stream(0, Purpose.INIT)) | {"mu": centres.astype(x.dtype)}


def lloyd(model: KMeans, params: dict[str, Any], x: Any, n: int) -> tuple[dict[str, Any], list]:
    """``n`` iterations by the verbs alone: the last parameters, and the energy before each."""
    energies = []
    for _ in range(n):
        stats = model.statistics(params, x)
        energies.append(float(stats["energy"]))
        params = model.maximize(params, stats)
    return params, energies


def inertia(x: np.ndarray, centres: np.ndarray) -> float:
    return float(((x[:, None] - centres[None]) ** 2).sum(axis=2).min(axis=1).sum())


# ---------------------------------------------------------------- the energy


@pytest.mark.parametrize("spherical", [False, True])
def test_energy_features_and_statistics_are_what_they_say(spherical: bool) -> None:
    rng, x = np.random.default_rng(0), BLOBS[:50]
    model = KMeans(4, spherical=spherical)
    params = generic_params(model, x)
    rows = x / np.linalg.norm(x, axis=1, keepdims=True) if spherical else x
    z2 = ((rows[:, None] - params["mu"][None]) ** 2).sum(axis=2)
    labels, z = z2.argmin(axis=1), np.sqrt(z2)
    np.testing.assert_allclose(model.free_energy(params, x), z2.min(axis=1), rtol=1e-12)
    np.testing.assert_array_equal(model.assign(params, x), labels)
    one_hot = np.eye(4)[labels]
    triangle = np.maximum(0, z.mean(axis=1, keepdims=True) - z)
    for features, wanted in (("distance", z), ("hard", one_hot), ("triangle", triangle)):
        model = KMeans(4, spherical=spherical, features=features)
        code = model.encode(params, x)
        # Distances come from a difference of squares of order 100: √(1e-16 · 100) at worst.
        np.testing.assert_allclose(code, wanted, rtol=1e-7, atol=2e-7)
        np.testing.assert_array_equal(model.decode(params, code), params["mu"][labels])
    stats = model.statistics(params, x)
    np.testing.assert_allclose(stats["energy"], z2.min(axis=1).sum(), rtol=1e-12)
    np.testing.assert_array_equal(stats["counts"], one_hot.sum(axis=0))
    np.testing.assert_allclose(stats["energies"], one_hot.T @ z2.min(axis=1), atol=1e-10)
    np.testing.assert_allclose(stats["sums"], one_hot.T @ (rows - params["offset"]), atol=1e-10)
    far = (labels == params["worst"]) & ((rows - params["mu"][labels]) @ params["probe"] > 0)
    assert stats["half/counts"] == far.sum() > 0 and stats["rows"] == 50
    np.testing.assert_allclose(
        stats["half/sums"], (rows - params["offset"])[far].sum(0), atol=1e-10
    )
    order = rng.permutation(50)
    parts = [model.statistics(params, x[order][rows]) for rows in (slice(20), slice(20, 50))]
    for key, whole in stats.items():
        assert whole.dtype == np.float64
        np.testing.assert_allclose(parts[0][key] + parts[1][key], whole, atol=1e-9)


def test_small_blocks_give_the_same_sums(monkeypatch: Any) -> None:
    model = KMeans(5)
    params = generic_params(model, BLOBS)
    whole, labels = model.statistics(params, BLOBS), model.assign(params, BLOBS)
    monkeypatch.setattr(kmeans, "_ROWS", 70)
    monkeypatch.setattr(kmeans, "_PRODUCTS", 17)
    for key, value in model.statistics(params, np.asfortranarray(BLOBS)).items():
        np.testing.assert_allclose(value, whole[key], rtol=1e-12, atol=1e-9)
    np.testing.assert_array_equal(model.assign(params, BLOBS), labels)


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_laws(spherical: bool, seed: int) -> None:
    model = KMeans(4, spherical=spherical)
    checked = energyscape.check_model(model, BLOBS[:12], random_state=seed)
    wanted = {"energy_is_free_energy", "gradient_is_central_difference", "gradient_is_additive"}
    assert wanted | {"input_gradient_is_central_difference"} <= set(checked)


def test_rows_of_zeros_have_no_direction() -> None:
    model = KMeans(2, spherical=True)
    x = np.array([[0.0, 0.0], [0, 3], [2, 0]])
    params = model.init_params(x, stream(0, Purpose.INIT))
    params["mu"] = np.eye(2)
    np.testing.assert_allclose(model.free_energy(params, x), [1, 0, 0], atol=1e-15)
    assert np.isfinite(model.input_grad(params, x)).all()


def test_float32_rows_far_from_zero_keep_their_energy() -> None:
    """Offset 1e4 of rows that spread by 5: float32 itself moves a row by 5e-4, its energy (about
    10) by 1e-3 at random and the sum by far less; without centring it is off by several units."""
    x = (BLOBS + 1e4).astype(np.float32)
    model = KMeans(6)
    params = model.init_params(x, stream(0, Purpose.INIT))
    truth = inertia(x.astype(np.float64), params["mu"].astype(np.float64))
    assert abs(model.statistics(params, x)["energy"] / truth - 1) < 1e-4
    assert abs(model.free_energy(params, x).sum() / truth - 1) < 1e-4
    plain = params | {"offset": np.zeros_like(params["offset"])}
    assert abs(model.statistics(plain, x)["energy"] / truth - 1) > 1e-2


# ---------------------------------------------------------------- Lloyd's algorithm


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", SETS)
def test_iterations_are_scikit_learns_from_the_same_start(name: str) -> None:
    x, k = SETS[name], 7
    centres = x[np.random.default_rng(1).permutation(len(x))[:k]]
    theirs = Reference(k, init=centres, n_init=1, max_iter=5, tol=0).fit(x)
    model = KMeans(k)
    params, _ = lloyd(model, start_at(model, x, centres), x, 5)
    # Rounding of sums of up to 1e4 in float64, and the labels of ties left alone.
    scale = abs(theirs.cluster_centers_).max()
    np.testing.assert_allclose(params["mu"], theirs.cluster_centers_, atol=1e-12 * scale)
    got = model.free_energy(params, x).sum()
    np.testing.assert_allclose(got, theirs.inertia_, rtol=1e-10)
    np.testing.assert_array_equal(model.assign(params, x), theirs.labels_)


@pytest.mark.parametrize("name", SETS)
def test_energy_never_rises(name: str) -> None:
    x, k = SETS[name], 7
    model = KMeans(k)
    centres = x[:k].copy()
    centres[3] += 1e3 * x.std()  # one that is empty, so that a split is among the steps
    params, energies = lloyd(model, start_at(model, x, centres), x, 30)
    # Each is a sum of n differences of squares in float64: 1e-13 of the first is generous.
    assert (np.diff(energies) <= 1e-13 * energies[0]).all() and params["reseeded"] >= 1
    assert energies[-1] < energies[0]


def test_one_cluster_is_the_total_variance() -> None:
    model = KMeans(1, random_state=0).fit(BLOBS)
    np.testing.assert_allclose(model.inertia_, len(BLOBS) * BLOBS.var(axis=0).sum(), rtol=1e-12)
    np.testing.assert_allclose(model.cluster_centers_[0], BLOBS.mean(axis=0), rtol=1e-12)


def best_in_one_dimension(x: np.ndarray, k: int) -> float:
    """The least inertia of sorted values in k runs, by dynamic programming."""
    x = np.sort(x)
    one, two = np.append(0, np.cumsum(x)), np.append(0, np.cumsum(x * x))

    def cost(lo: np.ndarray, hi: int) -> np.ndarray:
        return two[hi] - two[lo] - (one[hi] - one[lo]) ** 2 / (hi - lo)

    n = len(x)
    least = np.append(0.0, np.full(n, np.inf))
    for _ in range(k):
        starts = np.arange(n + 1)
        least = np.array(
            [least[0] if hi == 0 else (least[:hi] + cost(starts[:hi], hi)).min() for hi in starts]
        )
    return float(least[n])


def test_one_dimension_reaches_the_optimum() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(m, s, 40) for m, s in ((0, 1), (6, 0.5), (9, 1), (20, 3))])
    best = best_in_one_dimension(x, 4)
    model = KMeans(4, trainer=EM(tol=0, n_init=10), random_state=0).fit(x[:, None])
    assert model.inertia_ == pytest.approx(best, rel=1e-10)
    once = lloyd(KMeans(4), start_at(KMeans(4), x[:, None], x[:4, None]), x[:, None], 50)[1][-1]
    assert once > 1.05 * best  # a bad start shows that the comparison can fail


@pytest.mark.parametrize("name", SETS)
def test_ten_starts_are_as_good_as_scikit_learns(name: str) -> None:
    x = SETS[name]
    theirs = Reference(8, n_init=10, random_state=0).fit(x).inertia_
    ours = KMeans(8, trainer=EM(n_init=10), random_state=0).fit(x).inertia_
    assert ours < 1.01 * theirs


@pytest.mark.parametrize("name", SETS)
def test_batches_come_close_to_all_rows(name: str) -> None:
    """Mini-batch runs scatter: the mean of five of ours is within 5 % of that of five of theirs."""
    x, ours, theirs = SETS[name], [], []
    for seed in range(5):
        trainer = EM(n_epochs=10, batch_size=100)
        ours.append(KMeans(8, trainer=trainer, random_state=seed).fit(x).inertia_)
        reference = MiniBatchKMeans(8, batch_size=100, max_iter=10, n_init=1, random_state=seed)
        theirs.append(reference.fit(x).inertia_)
    assert np.mean(ours) < 1.05 * np.mean(theirs)


# ---------------------------------------------------------------- empty clusters


def test_an_empty_cluster_splits_the_worst_one() -> None:
    x = np.array([[0.0], [1], [2.1], [3.1], [100], [101]])
    centres = np.array([[1.55], [100.5], [900]])
    model = KMeans(3)
    params = start_at(model, x, centres) | {"worst": np.array(0)}
    moved = model.maximize(params, model.statistics(params, x))
    # Above or below the centre, as the random direction has it; both are halves of the cluster.
    assert moved["mu"][2, 0] in (0.5, 2.6) and moved["reseeded"] == 1 and params["reseeded"] == 0
    params, energies = lloyd(model, moved, x, 3)
    assert energies[-1] == pytest.approx(1.5) and params["reseeded"] == 1
    nothing = start_at(model, x, centres) | {"worst": np.array(2)}
    still = model.maximize(nothing, model.statistics(nothing, x))
    assert still["mu"][2, 0] == 900 and still["reseeded"] == 0


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_a_cluster_on_one_side_of_its_centre_is_not_split(direction: float) -> None:
    """All rows of the worst cluster, or none, lie beyond the plane: the mean would be its own."""
    x, centres = np.array([[0.0], [1], [2]]), np.array([[-1.0], [900]])
    model = KMeans(2)
    params = start_at(model, x, centres)
    params |= {"worst": np.array(0), "probe": np.array([direction])}
    moved = model.maximize(params, model.statistics(params, x))
    assert moved["reseeded"] == 0 and moved["mu"][:, 0].tolist() == [1, 900]


def test_seeds_are_those_of_greedy_k_means_plus_plus() -> None:
    """The energy of the seeds, over 200 draws, against scikit-learn's: means of the same law."""
    ours, theirs, uniform = [], [], []
    rng = np.random.default_rng(0)
    for seed in range(200):
        mu = KMeans(6).init_params(BLOBS, stream(seed, Purpose.INIT))["mu"]
        # Rows of the data, to the rounding of taking the mean off and putting it back.
        assert abs(mu[:, None] - BLOBS[None]).max(axis=2).min(axis=1).max() < 1e-12
        ours.append(inertia(BLOBS, mu))
        theirs.append(inertia(BLOBS, kmeans_plusplus(BLOBS, 6, random_state=seed)[0]))
        uniform.append(inertia(BLOBS, BLOBS[rng.permutation(len(BLOBS))[:6]]))

    def sigmas(a: list[float], b: list[float]) -> float:
        return float(abs(np.mean(a) - np.mean(b)) / np.sqrt((np.var(a) + np.var(b)) / 200))

    assert sigmas(ours, theirs) < 4.9 < sigmas(uniform, theirs)  # rate of false alarms 1e-6


def test_all_empty_clusters_are_moved_in_the_end() -> None:
    """Seven of eight start far away; each split leaves rows with the new centre."""
    model, rng = KMeans(8), np.random.default_rng(0)
    centres = np.concatenate([BLOBS[:1], 1e4 + rng.standard_normal((7, 5))])
    params, _ = lloyd(model, start_at(model, BLOBS, centres), BLOBS, 40)
    assert params["reseeded"] >= 6  # one of the far ones is nearest to something else at most
    assert (model.statistics(params, BLOBS)["counts"] > 0).all()
    start = KMeans(8, trainer=EM(n_init=10), random_state=0).fit(BLOBS).inertia_
    assert model.free_energy(params, BLOBS).sum() < 1.5 * start


def test_fewer_distinct_rows_than_clusters() -> None:
    x = np.repeat(np.array([[0.0, 1], [2, 3]]), 5, axis=0)
    model = KMeans(4, random_state=0).fit(x)
    assert model.inertia_ == 0 and np.isfinite(model.cluster_centers_).all()


def test_spherical_clusters_are_directions() -> None:
    rng = np.random.default_rng(0)
    axes = np.eye(6)[:3]
    lengths = rng.uniform(0.1, 10, (300, 1))
    truth = rng.integers(0, 3, 300)
    x = lengths * (axes[truth] + 0.1 * rng.standard_normal((300, 6)))
    model = KMeans(3, spherical=True, trainer=EM(n_init=5), random_state=0).fit(x)
    np.testing.assert_allclose(np.linalg.norm(model.cluster_centers_, axis=1), 1, rtol=1e-12)
    assert adjusted_rand_score(truth, model.labels_) == 1
    plain = KMeans(3, trainer=EM(n_init=5), random_state=0).fit(x)
    assert adjusted_rand_score(truth, plain.labels_) < 0.9
    # An iteration by its definition (Dhillon and Modha, 2001): means of unit rows, normalised.
    params, unit = model.params_, x / np.linalg.norm(x, axis=1, keepdims=True)
    labels = (unit @ params["mu"].T).argmax(axis=1)
    means = np.array([unit[labels == k].sum(axis=0) for k in range(3)])
    wanted = means / np.linalg.norm(means, axis=1, keepdims=True)
    got = model.maximize(params, model.statistics(params, x))["mu"]
    np.testing.assert_allclose(got, wanted, atol=1e-12)
    np.testing.assert_allclose(model.energy(3 * x), model.energy(x), rtol=1e-9)
    with pytest.raises(CapabilityError):
        KMeans(3, spherical=True, trainer=CD(n_epochs=1)).fit(x)


# ---------------------------------------------------------------- draws


def test_exact_draws_follow_the_density() -> None:
    model = KMeans(3)
    params = start_at(model, BLOBS[:, :1], np.array([[0.0], [0.7], [3.0]]))
    n = 40_000
    x = np.sort(model.sample_exact(params, n, stream(0, Purpose.SAMPLE))[:, 0])
    grid = np.linspace(-8, 11, 200_001)
    density = np.exp(-model.free_energy(params, grid[:, None]))
    cumulative = np.cumsum(density) / density.sum()
    apart = abs(np.interp(x, grid, cumulative) - (np.arange(n) + 0.5) / n).max()
    # Kolmogorov and Smirnov: P(√n D > 2.7) < 1e-6.
    assert apart < 2.7 / np.sqrt(n)
    mixture = np.exp(-((grid[:, None] - params["mu"][:, 0]) ** 2)).sum(axis=1)
    wrong = np.cumsum(mixture) / mixture.sum()
    assert abs(np.interp(x, grid, wrong) - (np.arange(n) + 0.5) / n).max() > 2.7 / np.sqrt(n)


# ---------------------------------------------------------------- the face


def test_fitted_attributes(tmp_path: Any) -> None:
    model = KMeans(6, random_state=0)
    assert not hasattr(model, "labels_") and not hasattr(model, "inertia_")
    model.fit(BLOBS)
    assert model.labels_.dtype == np.int32
    np.testing.assert_array_equal(model.labels_, model.predict(BLOBS))
    assert model.inertia_ == pytest.approx(inertia(BLOBS, model.cluster_centers_), rel=1e-10)
    assert model.inertia_ == pytest.approx(model.energy(BLOBS).sum(), rel=1e-12)
    assert model.n_reseeded_ == 0 and model.components_.shape == (6, 5)
    bound = np.array(model.history_["bound"])
    assert (np.diff(bound) >= -1e-12 * abs(bound[0])).all() and model.n_iter_ == len(bound)
    np.testing.assert_array_equal(clone(model).fit_predict(BLOBS), model.labels_)
    with pytest.warns(UnnormalizedScoreWarning):
        assert model.score(BLOBS) == pytest.approx(-model.inertia_ / len(BLOBS))
    model.save(tmp_path / "m.h5")
    for again in (pickle.loads(pickle.dumps(model)), energyscape.load(tmp_path / "m.h5")):
        np.testing.assert_array_equal(again.labels_, model.labels_)
        np.testing.assert_array_equal(again.transform(BLOBS), model.transform(BLOBS))
        np.testing.assert_array_equal(again.sample(4), model.sample(4))
        assert again.inertia_ == model.inertia_
        again.partial_fit(BLOBS[:100])
        assert len(again.labels_) == 100


@pytest.mark.parametrize("features", ["distance", "hard", "triangle"])
def test_codes_lead_back_to_centres(features: str) -> None:
    model = KMeans(6, features=features, random_state=0).fit(BLOBS)
    wanted = model.cluster_centers_[model.labels_]
    np.testing.assert_array_equal(model.reconstruct(BLOBS), wanted)
    np.testing.assert_array_equal(model.inverse_transform(model.transform(BLOBS)), wanted)


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"n_samples=3 should be >= n_clusters=4\."):
        KMeans(4).fit(BLOBS[:3])
    with pytest.raises(ValueError, match="10000, which is what"):
        KMeans(10_001).fit(np.zeros((10_002, 1)))
    with pytest.raises(ValueError, match="'distance', 'hard', 'triangle'; got 'soft'"):
        KMeans(4, features="soft").fit(BLOBS)
    with pytest.raises(CapabilityError, match="ClosedForm cannot train KMeans"):
        KMeans(4, trainer=ClosedForm()).fit(BLOBS)


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_both_paths_agree_on_the_same_noise(dtype: Any, spherical: bool, cupy: Any) -> None:
    model, found = KMeans(6, spherical=spherical), []
    for xp in (np, cupy):
        x = xp.asarray(BLOBS.astype(dtype))
        params = model.init_params(x, ReplayStream(xp))
        params["mu"][0] = 1e4  # to be reseeded
        params, energies = lloyd(model, params, x, 8)
        grads = model.free_energy_grad(params, x, x[:, 0])["mu"]
        codes = [
            KMeans(6, spherical=spherical, features=f).encode(params, x)
            for f in ("distance", "hard", "triangle")
        ]
        found.append([*params.values(), *codes, grads, model.input_grad(params, x), energies])
        assert all(v.dtype == dtype for v in [params["mu"], *codes, grads])
    for ours, theirs in zip(*found, strict=True):
        tolerance = 1e-3 if dtype == np.float32 else 1e-9
        theirs = theirs if isinstance(theirs, list) else to_host(theirs)
        scale = max(1.0, np.abs(ours).max())  # of sums whose terms cancel
        np.testing.assert_allclose(theirs, ours, atol=tolerance * scale)


def test_an_iteration_does_not_wait_for_the_gpu(fake_cupy: Any) -> None:
    model, x = KMeans(6), fake_cupy.asarray(BLOBS)
    params = model.init_params(x, ReplayStream(fake_cupy))
    standin.Counter.syncs = 0
    model.maximize(params, model.statistics(params, x))
    assert standin.Counter.syncs == 0


def test_fit_on_device_rows(fake_cupy: Any) -> None:
    model = KMeans(6, random_state=0).fit(fake_cupy.asarray(BLOBS))
    for name in ("labels_", "cluster_centers_"):
        assert type(getattr(model, name)) is fake_cupy.ndarray
    assert type(model.predict(BLOBS)) is np.ndarray
    assert model.inertia_ == pytest.approx(inertia(BLOBS, to_host(model.cluster_centers_)))
    assert type(model.sample(3)) is fake_cupy.ndarray
    assert isinstance(pickle.loads(pickle.dumps(model)).labels_, np.ndarray)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [
        KMeans(2, trainer=EM(n_epochs=5)),
        KMeans(2, features="hard", trainer=EM(n_epochs=2, batch_size=20)),
        KMeans(2, spherical=True, features="triangle", trainer=EM(n_epochs=3)),
    ]
)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)
