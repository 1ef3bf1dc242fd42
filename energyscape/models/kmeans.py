"""K-means: the energy is the squared distance to the nearest of K centres.

KMeans (Lloyd, 1982; as an energy-based model: LeCun et al., 2006)
    F(x) = min_k ‖x - μ_k‖²

Only K points can have no energy, which bounds the volume of low energy whatever is learned: pushing
down on the data alone is enough. The spherical variant (Dhillon and Modha, 2001) measures between
x/‖x‖ and unit centres, where ‖x̂ - μ‖² = 2 - 2 cos.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.base import ClusterMixin
from sklearn.utils.metaestimators import available_if

from energyscape.backend import Array, is_gpu_array, namespace, to_host
from energyscape.models.base import EnergyModel
from energyscape.models.moments import group_sums, one_hot
from energyscape.registry import register
from energyscape.samplers import HMC
from energyscape.trainers import EM
from energyscape.verbs import Param, Params

_FEATURES = ("distance", "hard", "triangle")
# Elements of the rows, and of their products with the centres, that are worked on at once: what
# stays in the caches of a CPU, and what keeps a GPU busy without filling it.
_ROWS, _PRODUCTS, _ON_GPU = 1 << 19, 1 << 18, 1 << 26


@register
class KMeans(ClusterMixin, EnergyModel):
    """K-means clustering, as a model of features: each row by its distances to K centres.

    A cluster that no row is nearest to is moved to split another: the one of the largest total
    energy in the iteration before is cut by the plane through its centre across one fixed random
    direction, and the empty centre goes to the mean of the rows on the far side, at least one of
    which is then nearer to it than to its old centre. One is moved per iteration, the energy never
    rises by it, and `n_reseeded_` counts them. (Where clusters are learned from batches, it takes
    the same cluster throughout what the running sums remember.)

    Parameters
    ----------
    n_components : int, default 8
        Clusters.
    features : {"distance", "hard", "triangle"}, default "distance"
        What ``transform`` gives: Euclidean distances z (as scikit-learn's); the nearest centre as
        one-hot rows; or max(0, mean(z) - z), sparse and soft (Coates, Lee, Ng, 2011).
    spherical : bool, default False
        Compare directions: rows are scaled to unit length (rows of zeros stay), centres have it.
    trainer : Trainer, optional
        Default: ``EM(n_epochs=300)``, Lloyd's algorithm; ``EM(batch_size=1024)`` learns from
        batches (Sculley, 2010), ``EM(n_init=10)`` keeps the best of ten starts.
    random_state, device, verbose
        As for `RBM`.

    Attributes
    ----------
    cluster_centers_, components_ : array, shape (n_components, n_features)
        Centres (the same array under two names).
    labels_ : array, shape (n,), int32
        Nearest centre of each row that the last fit was given.
    inertia_ : float
        Sum of their squared distances to it.
    n_reseeded_ : int
        Empty clusters that were moved.
    params_ : dict
        ``mu``, and the buffers ``offset`` (what rows are centred by before products are made),
        ``probe`` (the fixed direction), ``worst`` and ``reseeded``.
    history_, n_iter_, n_features_in_, seed_, trainer_
        As for `RBM`; ``bound`` in the history is minus the mean energy before each update.

    References
    ----------
    Lloyd, S. (1982). Least squares quantization in PCM.
    Arthur, D., Vassilvitskii, S. (2007). k-means++: the advantages of careful seeding.
    Dhillon, I., Modha, D. (2001). Concept decompositions for large sparse text data.
    Sculley, D. (2010). Web-scale k-means clustering.
    Coates, A., Lee, H., Ng, A. (2011). An analysis of single-layer networks in unsupervised
    feature learning.

    Examples
    --------
    >>> from energyscape.data import load_digits
    >>> from energyscape.models import KMeans
    >>> X, _ = load_digits()
    >>> KMeans(10, features="triangle", random_state=0).fit_transform(X).shape
    (1797, 10)
    """

    domain = "real"
    _counted = ("mu", 0)
    smooth = False
    nonnegative = True

    def __init__(
        self,
        n_components: int = 8,
        *,
        features: str = "distance",
        spherical: bool = False,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.features = features
        self.spherical = spherical
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def default_trainer(self) -> Any:
        """Lloyd's algorithm from one start."""
        return EM(n_epochs=300)

    def default_sampler(self) -> Any:
        """HMC, for in-painting and other temperatures: draws of the model itself are exact."""
        return HMC()

    def check_settings(self) -> None:
        super().check_settings()
        if self.features not in _FEATURES:
            raise ValueError(
                f"features must be one of {', '.join(map(repr, _FEATURES))}; got {self.features!r}"
            )

    def check_rows(self, n: int, event_shape: tuple[int, ...]) -> None:
        if n < self.n_components:
            raise ValueError(f"n_samples={n} should be >= n_clusters={self.n_components}.")
        if self.n_components > EM.start_rows:
            raise ValueError(
                f"n_components={self.n_components} centres cannot start at different rows of "
                f"{EM.start_rows}, which is what k-means++ is given; ask for fewer"
            )

    @property
    def proper(self) -> bool:
        """exp(-F) is a density unless only the direction of x counts."""
        return not self.spherical

    # ------------------------------------------------------------ verbs

    def init_params(self, x: Array, rng: Any) -> Params:
        """k-means++ (Arthur and Vassilvitskii, 2007): each centre a row, far from those before."""
        xp = namespace(x)
        mean = x.mean(axis=0, dtype=np.float64).astype(x.dtype)
        offset = xp.zeros_like(mean) if self.spherical else mean
        z = self._centred({"offset": offset}, x)
        mu = _seeds(z, self.n_components, rng) + offset
        params = {
            "mu": mu,
            "offset": offset,
            "probe": rng.normal(x.shape[1:], x.dtype),
            "worst": xp.zeros((), np.int64),
            "reseeded": xp.zeros((), np.int64),
        }
        worst = xp.argmax(self.statistics(params, x)["energies"])
        return params | {"worst": xp.asarray(worst)}

    def param_specs(self) -> dict[str, Param]:
        buffers = {k: Param(trainable=False) for k in ("offset", "probe", "worst", "reseeded")}
        return {"mu": Param(), **buffers}

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        d = (n_features,)
        return {
            "mu": (self.n_components, *d),
            "offset": d,
            "probe": d,
            "worst": (),
            "reseeded": (),
        }

    def event_shape(self, params: Params) -> tuple[int, ...]:
        """Shape of one row."""
        return tuple(params["mu"].shape[1:])

    def feasible(self, params: Params) -> Params:
        """A copy with centres of unit length, if ``spherical``."""
        return params | {"mu": _unit(params["mu"])} if self.spherical else params

    def free_energy(self, params: Params, x: Array) -> Array:
        """F(x), shape (n,), float64, from differences: exact however far from 0 the data lie."""
        return _squares(self._away(params, x).astype(np.float64, copy=False))

    def free_energy_grad(self, params: Params, x: Array, weights: Array) -> Params:
        """Σ_i w_i ∂F(x_i)/∂μ_k = -2 Σ_{i nearest to k} w_i (x_i - μ_k)."""
        labels = self.assign(params, x)
        sums = group_sums(self._away(params, x, labels), labels, self.n_components, weights)
        sums *= sums.dtype.type(-2)
        return {"mu": sums}

    def input_grad(self, params: Params, x: Array) -> Array:
        """∂F/∂x = 2 (x - μ_k) for the nearest k; if ``spherical``, what of it turns x, by ‖x‖."""
        away = self._away(params, x)
        away *= away.dtype.type(2)
        if self.spherical:
            unit = _unit(x)
            away -= (away * unit).sum(axis=1)[:, None] * unit
            away /= _lengths(x)
        return away

    def encode(self, params: Params, x: Array) -> Array:
        """Features of each row, shape (n, n_components)."""
        xp, z = namespace(x), self._centred(params, x)
        centres = self._centres(params)
        if self.features == "hard":
            return one_hot(_nearest(z, centres)[0], len(centres), x.dtype)
        out = z @ (centres * centres.dtype.type(-2)).T
        out += _squares(z)[:, None]
        out += _squares(centres)
        xp.maximum(out, 0, out=out)  # rounding may leave less than nothing
        xp.sqrt(out, out=out)
        if self.features == "triangle":
            xp.subtract(out.mean(axis=1)[:, None], out, out=out)
            xp.maximum(out, 0, out=out)
        return out

    def decode(self, params: Params, h: Array) -> Array:
        """The centre that a code calls the nearest; of hard codes the mean, h'μ."""
        if self.features == "hard":
            return h @ params["mu"]
        xp = namespace(h)
        pick = xp.argmin(h, axis=1) if self.features == "distance" else xp.argmax(h, axis=1)
        return params["mu"][pick]

    def assign(self, params: Params, x: Array) -> Array:
        """Number of the nearest centre of each row, shape (n,), int64."""
        return _nearest(self._centred(params, x), self._centres(params))[0]

    @available_if(lambda self: not self.spherical)
    def sample_exact(self, params: Params, n: int, rng: Any) -> Array:
        """``n`` exact draws of exp(-F)/Z: Gaussians of variance ½ around the centres in turn,
        kept where the centre that a point was drawn around is its nearest."""
        mu = params["mu"]
        xp, (k, d), found, kept = namespace(mu), mu.shape, 0, []
        while found < n:
            pick = (rng.uniform(n, np.float64) * k).astype(np.int64)
            x = mu[pick] + rng.normal((n, d), mu.dtype) * mu.dtype.type(math.sqrt(0.5))
            kept.append(x[self.assign(params, x) == pick])
            found += len(kept[-1])
        return xp.concatenate(kept)[:n]

    # ------------------------------------------------------------ Lloyd's algorithm

    def statistics(self, params: Params, x: Array) -> Params:
        """Sums over the rows of each cluster, float64.

        ``rows`` and ``energy`` of all; ``counts`` (K,), ``energies`` (K,) and ``sums`` (K, D) of
        the centred rows by cluster; ``half/counts`` (), ``half/sums`` (D,) of the far half of the
        cluster ``half/cluster`` / ``rows``, which an empty one would take.
        """
        xp, centres = namespace(x), self._centres(params)
        k, worst, total = len(centres), params["worst"].astype(np.int64), list[Array]()
        level = centres[worst] @ params["probe"]
        size = max(1, (_ON_GPU if is_gpu_array(x) else _ROWS) // max(centres.shape))
        for lo in range(0, len(x), size):
            z = self._centred(params, x[lo : lo + size])
            labels, energy = _nearest(z, centres)
            energy = xp.maximum(energy + _squares(z), 0).astype(np.float64)
            half = (labels == worst) & (z @ params["probe"] > level)
            groups = xp.where(half, k, labels)
            counts, energies = _group_counts(groups, energy, k + 1)
            part = [counts, energies, group_sums(z, groups, k + 1).astype(np.float64)]
            total = [a + b for a, b in zip(total, part, strict=True)] if total else part
        (n, e, s), rows = total, xp.full((), len(x), np.float64)
        cut = (xp.arange(k) == worst).astype(np.float64)  # gets back its far half
        return {
            "rows": rows,
            "energy": e.sum(),
            "counts": n[:k] + cut * n[k],
            "energies": e[:k] + cut * e[k],
            "sums": s[:k] + cut[:, None] * s[k],
            "half/cluster": rows * worst,
            "half/counts": n[k],
            "half/sums": s[k],
        }

    def maximize(self, params: Params, stats: Params) -> Params:
        """Centres at the means of their rows; one that has none splits a cluster, or stays."""
        mu, n = params["mu"], stats["counts"]
        xp, worst = namespace(mu), params["worst"].astype(np.int64)
        empty, half = n <= 0, stats["half/counts"]
        sums = xp.where(empty[:, None], self._centres(params), stats["sums"])
        mean = sums / xp.where(empty, 1.0, n)[:, None]
        # Less than the whole cluster, and of the same one in all that was summed.
        same = abs(stats["half/cluster"] - stats["rows"] * worst) <= 1e-9 * stats["rows"]
        split = empty.any() & (half > 0) & (half < n[worst]) & same
        taker = (xp.arange(len(n)) == xp.argmax(empty)) & split
        far = stats["half/sums"] / xp.maximum(half, 1e-300)
        mean = xp.where(taker[:, None], far, mean) + params["offset"]
        moved = params | {
            "mu": mean.astype(mu.dtype),
            "worst": xp.asarray(xp.argmax(stats["energies"])),
            "reseeded": xp.asarray(params["reseeded"] + split),
        }
        if self.spherical:  # opposite directions have no mean: such a centre stays
            some = (mean * mean).sum(axis=1)[:, None] > 0
            moved["mu"] = xp.where(some, _unit(mean), mu).astype(mu.dtype)
        return moved

    def _centred(self, params: Params, x: Array) -> Array:
        """Rows relative to ``offset`` (a new array): without it ‖x‖² - 2x'μ + ‖μ‖² would cancel."""
        z = namespace(x).empty(x.shape, x.dtype)  # C-contiguous whatever x is
        if self.spherical:
            return namespace(x).divide(x, _lengths(x), out=z)
        return namespace(x).subtract(x, params["offset"], out=z)

    def _centres(self, params: Params) -> Array:
        return params["mu"] - params["offset"]

    def _away(self, params: Params, x: Array, labels: Array = None) -> Array:
        """x - μ of the nearest centre, shape (n, n_features)."""
        z, centres = self._centred(params, x), self._centres(params)
        z -= centres[_nearest(z, centres)[0] if labels is None else labels]
        return z

    # ------------------------------------------------------------ fitted

    _labels: Any = None  # of the rows of the last fit, where it is over and they were at hand

    def fit(self, X: Any, y: Any = None) -> Any:
        """As every model's (`EnergyModel.fit`); then ``labels_`` and ``inertia_`` of ``X``."""
        self._labels = None
        return super().fit(X)._describe(X)

    def partial_fit(self, X: Any, y: Any = None) -> Any:
        """As every model's (`EnergyModel.partial_fit`); then ``labels_`` of ``X``."""
        self._labels = None
        return super().partial_fit(X)._describe(X)

    def resume(self, X: Any, y: Any = None) -> Any:
        """As every model's (`EnergyModel.resume`); then ``labels_`` of ``X``."""
        self._labels = None
        return super().resume(X)._describe(X)

    def _describe(self, X: Any) -> Any:
        def both(params: Params, x: Array) -> Array:
            labels = self.assign(params, x)
            energy = _squares(self._away(params, x, labels).astype(np.float64, copy=False))
            return namespace(x).stack([labels.astype(np.float64), energy], axis=1)

        labels, energy = to_host(self._map(X, both)).T
        self._labels, self._inertia = labels.astype(np.int32), float(energy.sum())
        return self

    def predict(self, X: Any) -> Any:
        """Number of the nearest centre of each row.

        Parameters
        ----------
        X : array, shape (n, n_features)

        Returns
        -------
        array, shape (n,), int32, container of X
        """
        return self._map(X, lambda params, x: self.assign(params, x).astype(np.int32))

    @property
    def cluster_centers_(self) -> Any:
        self._need_fit("cluster_centers_")
        return self._fitted(self._params["mu"])

    @property
    def components_(self) -> Any:
        self._need_fit("components_")
        return self._fitted(self._params["mu"])

    @property
    def labels_(self) -> Any:
        self._need_described("labels_")
        return self._fitted(self._labels)

    @property
    def inertia_(self) -> float:
        self._need_described("inertia_")
        return self._inertia

    def _need_described(self, name: str) -> None:
        self._need_fit(name)
        if self._labels is None:
            raise AttributeError(
                f"KMeans has no {name} until the fit that is going on is done, nor after one by "
                "workers, whose rows are not here: use predict or energy"
            )

    @property
    def n_reseeded_(self) -> int:
        self._need_fit("n_reseeded_")
        return int(self._params["reseeded"])

    def file_state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        meta, arrays = super().file_state()
        if self._labels is None:  # a checkpoint in the middle of a fit
            return meta, arrays
        return meta | {"inertia": self._inertia}, arrays | {"labels": self._labels}

    def set_file_state(self, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        super().set_file_state(meta, arrays)
        self._labels = arrays.get("labels")
        if self._labels is not None:
            self._inertia = float(meta["inertia"])


# ---------------------------------------------------------------- rows and centres


def _nearest(z: Array, centres: Array) -> tuple[Array, Array]:
    """Number k of the nearest centre, and ‖μ_k‖² - 2 z'μ_k, of each row."""
    xp, n = namespace(z), len(z)
    twice, squares = centres * centres.dtype.type(-2), _squares(centres)
    labels, least = xp.empty(n, np.int64), xp.empty(n, z.dtype)
    size = max(1, (_ON_GPU if is_gpu_array(z) else _PRODUCTS) // len(centres))
    block = xp.empty((min(size, n), len(centres)), z.dtype)
    for lo in range(0, n, size):
        rows = slice(lo, min(lo + size, n))
        part = block[: rows.stop - lo]
        xp.matmul(z[rows], twice.T, out=part)
        part += squares
        labels[rows] = xp.argmin(part, axis=1)
        least[rows] = part[xp.arange(len(part)), labels[rows]]
    return labels, least


def _seeds(z: Array, k: int, rng: Any) -> Array:
    """Greedy k-means++: of 2 + log k rows, drawn ∝ squared distance, the one that leaves least."""
    xp, (n, d) = namespace(z), z.shape
    u = rng.uniform((k, 2 + int(math.log(k))), np.float64)
    squares, centres = _squares(z), xp.empty((k, d), z.dtype)
    picks = (u[0] * n).astype(np.int64)[:1]
    closest: Array = None
    for j in range(k):
        apart = z[picks] @ z.T
        apart *= apart.dtype.type(-2)
        apart += squares
        apart += squares[picks][:, None]
        xp.maximum(apart, 0, out=apart)
        if j:
            xp.minimum(apart, closest, out=apart)
        best = xp.argmin(apart.sum(axis=1, dtype=np.float64))
        centres[j], closest = z[picks[best]], apart[best]
        if j + 1 < k:
            mass = xp.cumsum(closest, dtype=np.float64)
            picks = xp.searchsorted(mass, u[j + 1] * mass[-1], side="right")
            picks = xp.minimum(picks, n - 1)
    return centres


def _group_counts(groups: Array, energy: Array, k: int) -> tuple[Array, Array]:
    """Rows and energy of each group, float64."""
    if is_gpu_array(groups):
        rows = one_hot(groups, k, np.float64)
        return rows.sum(axis=0), energy @ rows
    counts = np.bincount(groups, minlength=k).astype(np.float64)
    return counts, np.bincount(groups, weights=energy, minlength=k)


def _squares(z: Array) -> Array:
    return namespace(z).einsum("ij,ij->i", z, z)


def _lengths(x: Array) -> Array:
    """Lengths of rows as a column, 1 for rows of zeros."""
    xp = namespace(x)
    length = xp.sqrt((x * x).sum(axis=1))
    return xp.where(length > 0, length, 1)[:, None].astype(x.dtype)


def _unit(x: Array) -> Array:
    return x / _lengths(x)
