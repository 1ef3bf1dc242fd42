"""Trainers of auto-encoders: their gradients are those of textbooks, their optima known ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import standin
from sklearn.base import clone
from streams import ReplayStream

from energyscape import load
from energyscape.activations import Shrink, TopK
from energyscape.backend import HostStream, Purpose, Stream, stream, to_host
from energyscape.corruptions import GaussianNoise, Masking, SaltAndPepper
from energyscape.errors import CapabilityError
from energyscape.evaluation.laws import generic_params
from energyscape.models import RBM
from energyscape.models.autoencoder import AutoEncoder
from energyscape.models.mixture import GaussianMixture
from energyscape.optim import SGD, Adam, Constant, Moment
from energyscape.penalties import (
    KL,
    L1,
    Contractive,
    HessianContractive,
    Hutchinson,
    KSparse,
    Lifetime,
    Saturating,
    Student,
)
from energyscape.trainers import Contraction, Denoising, Reconstruction, Saturation, Sparsity
from energyscape.trainers.base import Batch

D, K, N = 5, 4, 12
STEP = 1e-5
CLOSE = 1e-7  # STEP² f'''/6 and rounding 1e-16/STEP are both of the order of 1e-9 relative


def reals(n: int, d: int = D) -> np.ndarray:
    rng = np.random.default_rng(3)
    return 5 + rng.standard_normal((n, d)) @ rng.standard_normal((d, d))


def greys(n: int, d: int = D) -> np.ndarray:
    return np.random.default_rng(4).random((n, d))


def gradient(trainer: Any, model: Any, params: Any, x: Any, **options: Any) -> Any:
    """What the trainer collects on the batch x from the stream 7."""
    trainer.validate(model)
    batch = Batch(x, options.pop("n", len(x)), progress=options.pop("progress", 0.1))
    return trainer.collect(model, params, {}, batch, options.pop("rng", ReplayStream(np, 7)))


# ---------------------------------------------------------------- the textbooks' losses


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


F = {
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "relu": lambda a: np.maximum(a, 0),
    "identity": lambda a: a,
    "saturated_linear": lambda a: np.clip(a, 0, 1),
}


class Book:
    """An auto-encoder written out from its definition, for one activation and one loss."""

    def __init__(self, activation: str, cross: bool, tied: bool) -> None:
        self.activation, self.f, self.cross, self.tied = activation, F[activation], cross, tied

    def inward(self, p: Any, x: np.ndarray) -> np.ndarray:
        return x if self.cross else (x - p["mean"]) / p["scale"]

    def fields(self, p: Any, x: np.ndarray) -> np.ndarray:
        return self.inward(p, x) @ p["W"] + p["c"]

    def codes(self, p: Any, x: np.ndarray, mask: Any = None) -> np.ndarray:
        a = self.fields(p, x)
        return self.f(a) * (1 if mask is None else mask(a))

    def output(self, p: Any, h: np.ndarray) -> np.ndarray:
        return h @ (p["W"].T if self.tied else p["V"]) + p["b"]

    def loss(self, p: Any, x: np.ndarray, seen: np.ndarray, weights: Any, mask: Any) -> float:
        """⟨Σ_d w ℓ(x_d, r_d(seen))⟩, squares in units of the data's scale."""
        a = self.output(p, self.codes(p, seen, mask))
        if self.cross:
            r = sigmoid(a)
            each = -x * np.log(r) - (1 - x) * np.log(1 - r)
        else:
            each = (self.inward(p, x) - a) ** 2
        return (weights * each).sum() / len(x)

    def redrawn(self, p: Any, seen: np.ndarray, rng: Any) -> np.ndarray:
        """A draw of p(x | seen): bits, or the mean and noise of the residuals' variance."""
        a = self.output(p, self.codes(p, seen))
        if self.cross:
            return (rng.uniform(a.shape, a.dtype) < sigmoid(a)).astype(float)
        a = a + rng.normal(a.shape, a.dtype) * np.sqrt(p["residual"])
        return p["mean"] + p["scale"] * a

    def jacobian(self, p: Any, x: np.ndarray, shift: Any = 0.0) -> np.ndarray:
        """∂h/∂z, shape (n, K, D), by the complex step: exact to rounding."""
        a = self.fields(p, x) + shift @ p["W"] if np.ndim(shift) else self.fields(p, x)
        if self.activation in ("sigmoid", "tanh", "identity"):
            slope = self.f(a + 1e-30j).imag / 1e-30
        else:
            slope = (self.f(a + 1e-9) - self.f(a - 1e-9)) / 2e-9
        return slope[:, :, None] * p["W"].T


def masked(x: np.ndarray, rng: Any, fraction: float) -> Any:
    off = rng.uniform(x.shape, np.float32) < fraction
    return np.where(off, 0.0, x), off


def salted(x: np.ndarray, rng: Any, fraction: float) -> Any:
    u = rng.uniform(x.shape, np.float32)
    return np.where(u < fraction / 2, 0.0, np.where(u < fraction, 1.0, x)), u < fraction


def noisy(x: np.ndarray, rng: Any, scale: float) -> Any:
    return x + scale * rng.normal(x.shape, x.dtype), np.ones(x.shape, bool)


def numeric(loss: Any, p: Any, keys: str) -> dict[str, np.ndarray]:
    grads = {}
    for key in keys:
        grads[key] = np.empty_like(p[key])
        for i in np.ndindex(p[key].shape):
            ends = []
            for sign in (1, -1):
                moved = p[key].copy()
                moved[i] += sign * STEP
                ends.append(loss(p | {key: moved}))
            grads[key][i] = (ends[0] - ends[1]) / (2 * STEP)
    return grads


def agree(got: Any, wanted: Any, tolerance: float = CLOSE) -> None:
    for key, value in wanted.items():
        scale = max(1.0, np.abs(value).max())
        np.testing.assert_allclose(got[key], value, atol=tolerance * scale, err_msg=key)


KINDS = [("sigmoid", False, True), ("sigmoid", True, True), ("tanh", True, False)]
NOISES = [
    (Masking(0.3), masked, 0.3),
    (SaltAndPepper(0.4), salted, 0.4),
    (GaussianNoise(0.2), noisy, 0.2),
]


def prepared(activation: str, cross: bool, tied: bool) -> Any:
    x = greys(N) if cross else reals(N)
    loss = "cross_entropy" if cross else "squared"
    model = AutoEncoder(K, activation=activation, loss=loss, tied=tied)
    p = dict(generic_params(model, x, noise=0.5))
    if not cross:
        p["residual"] = np.linspace(0.2, 1, D)
    return model, p, x, Book(activation, cross, tied), "Wcb" if tied else "WcbV"


def denoising_loss(
    book: Book, p: Any, x: np.ndarray, noise: Any, emphasis: Any, walkback: int
) -> Any:
    """The loss as a function of the parameters at frozen noise: starts of steps are constants."""
    rng, start, steps = ReplayStream(np, 7), x, []
    for step in range(walkback + 1):
        seen, touched = noise[1](start, rng, noise[2])
        steps.append((seen, np.where(touched, *emphasis)))
        if step < walkback:
            start = book.redrawn(p, seen, rng)
    return lambda q: np.mean([book.loss(q, x, seen, w, None) for seen, w in steps])


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("noise", NOISES, ids=lambda n: type(n[0]).__name__)
@pytest.mark.parametrize("emphasis", [(1.0, 1.0), (1.0, 0.0), (0.7, 0.2)], ids=str)
@pytest.mark.parametrize("walkback", [0, 1, 2])
def test_denoising_descends_its_loss(kind: Any, noise: Any, emphasis: Any, walkback: int) -> None:
    model, p, x, book, keys = prepared(*kind)
    trainer = Denoising(noise[0], emphasis=emphasis, walkback=walkback)
    loss = denoising_loss(book, p, x, noise, emphasis, walkback)
    agree(gradient(trainer, model, p, x), numeric(loss, p, keys))


def test_a_denoiser_of_the_corrupted_rows_is_caught() -> None:
    """The classical bug: x̃ as the target is another gradient, by far."""
    model, p, x, book, keys = prepared(*KINDS[0])
    seen, _ = masked(x, ReplayStream(np, 7), 0.3)
    wrong = numeric(lambda q: book.loss(q, seen, seen, 1.0, None), p, keys)
    got = gradient(Denoising(Masking(0.3)), model, p, x)
    assert max(np.abs(got[k] - wrong[k]).max() for k in keys) > 0.01


def test_residuals_are_those_of_the_corrupted_rows() -> None:
    model, p, x, book, _ = prepared(*KINDS[0])
    sums = gradient(Denoising(Masking(0.3)), model, p, x)
    seen, _ = masked(x, ReplayStream(np, 7), 0.3)
    rest = book.output(p, book.codes(p, seen)) - book.inward(p, x)
    np.testing.assert_allclose(sums["mean/residual"], (rest**2).mean(axis=0), rtol=1e-12)
    p["residual"] = np.ones(D)
    model.project(p, sums, None)
    np.testing.assert_allclose(p["residual"], 0.99 + 0.01 * (rest**2).mean(axis=0), rtol=1e-12)


def kl(book: Book, p: Any, x: np.ndarray, rng: Any) -> float:
    m = book.codes(p, x).mean(axis=0)
    return 0.7 * (0.1 * np.log(0.1 / m) + 0.9 * np.log(0.9 / (1 - m))).sum()


def hessian(book: Book, p: Any, x: np.ndarray, rng: Any) -> float:
    """Jacobian at x, and its change to x + ε, which is drawn in standardised units."""
    here = book.jacobian(p, x)
    value = 0.7 * (here**2).sum(axis=(1, 2)).mean()
    for _ in range(2):
        eps = 0.5 * rng.normal(x.shape, x.dtype)
        value += 0.45 * ((here - book.jacobian(p, x, eps)) ** 2).sum(axis=(1, 2)).mean()
    return value


def hutchinson(book: Book, p: Any, x: np.ndarray, rng: Any) -> float:
    v = np.where(rng.uniform((len(x), K), np.float32) < 0.5, 1.0, -1.0)
    pulled = np.einsum("nk,nkd->nd", v, book.jacobian(p, x))
    return 0.7 * (pulled**2).sum(axis=1).mean()


def tent(book: Book, p: Any, x: np.ndarray, rng: Any) -> float:
    a = book.fields(p, x)
    return 0.7 * np.maximum(np.minimum(a, 1 - a), 0).sum(axis=1).mean()


PENALTIES: list[tuple[Any, Any, str, Any]] = [
    (Sparsity, KL(0.1, 0.7), "sigmoid", kl),
    (Sparsity, L1(0.7), "tanh", lambda b, p, x, r: 0.7 * abs(b.codes(p, x)).sum(1).mean()),
    (
        Sparsity,
        Student(0.7),
        "tanh",
        lambda b, p, x, r: 0.7 * np.log(1 + b.codes(p, x) ** 2).sum(1).mean(),
    ),
    (
        Contraction,
        Contractive(0.7),
        "sigmoid",
        lambda b, p, x, r: 0.7 * (b.jacobian(p, x) ** 2).sum(axis=(1, 2)).mean(),
    ),
    (Contraction, HessianContractive(0.7, 0.9, 0.5, 2), "tanh", hessian),
    (Contraction, Hutchinson(0.7), "sigmoid", hutchinson),
    (Saturation, Saturating(0.7), "saturated_linear", tent),
    (
        Saturation,
        Saturating(0.7),
        "relu",
        lambda b, p, x, r: 0.7 * np.maximum(b.fields(p, x), 0).sum(1).mean(),
    ),
]


@pytest.mark.parametrize("row", PENALTIES, ids=lambda r: f"{type(r[1]).__name__}-{r[2]}")
@pytest.mark.parametrize("cross", [False, True], ids=["squared", "cross entropy"])
@pytest.mark.parametrize("corrupted", [False, True], ids=["clean", "denoising"])
def test_penalties_add_their_own_to_the_loss(row: Any, cross: bool, corrupted: bool) -> None:
    """Penalties look at what is encoded: the corrupted rows, where rows are corrupted."""
    trainer, penalty, activation, value = row
    model, p, x, book, keys = prepared(activation, cross, True)
    noise = Masking(0.3) if corrupted else None

    def loss(q: Any) -> float:
        rng = ReplayStream(np, 7)
        seen = masked(x, rng, 0.3)[0] if corrupted else x
        return book.loss(q, x, seen, 1.0, None) + value(book, q, seen, rng)

    wanted = numeric(loss, p, keys)
    agree(gradient(trainer(penalty, noise), model, p, x), wanted)
    # The same by the other names that it has.
    if corrupted:
        agree(gradient(Denoising(noise, penalties=[penalty]), model, p, x), wanted)
    agree(gradient(Reconstruction(noise, [penalty]), model, p, x), wanted)


def test_several_penalties_are_one_loss() -> None:
    """Contractive denoising with sparse codes: every term is there once."""
    model, p, x, book, keys = prepared("sigmoid", False, True)

    def loss(q: Any) -> float:
        seen = noisy(x, ReplayStream(np, 7), 0.2)[0]
        value = PENALTIES[3][3](book, q, seen, None) + 0.3 * abs(book.codes(q, seen)).sum(1).mean()
        return book.loss(q, x, seen, 1.0, None) + value

    trainer = Contraction(Contractive(0.7), GaussianNoise(0.2), [L1(0.3)])
    agree(gradient(trainer, model, p, x), numeric(loss, p, keys))


def top(k: int, axis: int) -> Any:
    def mask(a: np.ndarray) -> np.ndarray:
        return (a >= np.sort(a, axis=axis).take([-k], axis=axis)).astype(float)

    return mask


@pytest.mark.parametrize(
    ("constraint", "mask", "progress"),
    [
        (KSparse(2), top(2, 1), None),
        (KSparse(1, start=3, anneal=0.5), top(2, 1), 0.25),
        (KSparse(1, start=3, anneal=0.5), top(1, 1), 0.6),
        (Lifetime(0.25), top(3, 0), None),
    ],
    ids=["k-sparse", "begun", "annealed", "lifetime"],
)
@pytest.mark.parametrize("kind", [("identity", False, True), ("relu", True, False)], ids=str)
def test_constraints_are_seen_by_the_loss(
    constraint: Any, mask: Any, progress: Any, kind: Any
) -> None:
    model, p, x, book, keys = prepared(*kind)
    wanted = numeric(lambda q: book.loss(q, x, x, 1.0, mask), p, keys)
    agree(gradient(Sparsity(constraint), model, p, x, progress=progress), wanted)
    free = gradient(Reconstruction(), model, p, x)
    assert max(np.abs(free[k] - wanted[k]).max() for k in keys) > 0.01  # it is a constraint


# ---------------------------------------------------------------- units, parts, resumes


def fitted(trainer: Any, x: np.ndarray, **settings: Any) -> AutoEncoder:
    return AutoEncoder(K, trainer=trainer, random_state=2, **settings).fit(x)


@pytest.mark.parametrize("optimizer", [SGD(0.05), SGD(0.02, momentum=0.5), Adam(0.01)], ids=repr)
@pytest.mark.parametrize(
    ("trainer", "activation"),
    [
        (Reconstruction(), "tanh"),
        (Denoising(GaussianNoise(0.3), walkback=1), "sigmoid"),
        (Sparsity(KL(0.1, 0.5)), "sigmoid"),
        (Sparsity(L1(0.5), penalties=[Student(0.1)]), "relu"),
        (Sparsity(KSparse(2)), "identity"),
        (Contraction(HessianContractive(0.2, 0.2)), "sigmoid"),
        (Saturation(Saturating(0.2)), "saturated_linear"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_units_do_not_matter(trainer: Any, activation: str, optimizer: Any) -> None:
    """X and 1000 X + 7 (noise in the units of the data) have the same codes.

    To 1e-8: standardising differs by 1e-15, which a hundred steps with slopes of order 1 may
    amplify, and a strength in the wrong units would change codes by more than 0.01.
    """
    x = reals(40)
    trainer = clone(trainer).set_params(optimizer=optimizer, n_epochs=25, batch_size=10)
    one = fitted(trainer, x, activation=activation)
    if trainer.corruption is not None:
        trainer = clone(trainer).set_params(corruption=GaussianNoise(300.0))
    other = fitted(trainer, 1000 * x + 7, activation=activation)
    np.testing.assert_allclose(one.transform(x), other.transform(1000 * x + 7), atol=1e-8)
    np.testing.assert_allclose(one.energy(x) * 1e6, other.energy(1000 * x + 7), rtol=1e-6)


class Part(Stream):
    """The numbers that rows ``rows`` of a whole batch would be handed."""

    def __init__(self, n: int, rows: slice) -> None:
        self.n, self.rows, self.host = n, rows, HostStream(7, 0, 0)

    def uniform(self, shape: Any = None, dtype: Any = np.float32, out: Any = None) -> Any:
        return self.host.uniform((self.n, *shape[1:]), dtype)[self.rows]

    def normal(self, shape: Any = None, dtype: Any = np.float32, out: Any = None) -> Any:
        return self.host.normal((self.n, *shape[1:]), dtype)[self.rows]


@pytest.mark.parametrize(
    ("trainer", "activation"),
    [
        (Reconstruction(), "sigmoid"),
        (Denoising(GaussianNoise(0.3), walkback=2, emphasis=(0.5, 0.5)), "sigmoid"),
        (Sparsity(L1(0.5)), "tanh"),
        (Sparsity(Student(0.5), penalties=[KSparse(2)]), "identity"),
        (Contraction(Contractive(0.5), Masking(0.2), [L1(0.2)]), "sigmoid"),
        (Contraction(HessianContractive(0.5)), "tanh"),
        (Contraction(Hutchinson(0.5)), "sigmoid"),
        (Saturation(Saturating(0.5)), "saturated_linear"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_gradients_add_up_over_parts_of_a_batch(trainer: Any, activation: str) -> None:
    """All but `KL` and `Lifetime`, which look at the batch as a whole; to rounding."""
    model, p, x, _, _ = prepared(activation, False, True)
    whole = gradient(trainer, model, p, x, rng=Part(N, slice(None)))
    parts = [
        gradient(trainer, model, p, x[rows], n=N, rng=Part(N, rows))
        for rows in (slice(0, 5), slice(5, N))
    ]
    for key, value in whole.items():
        np.testing.assert_allclose(parts[0][key] + parts[1][key], value, atol=1e-12, err_msg=key)


SHORT = {"n_epochs": 4, "batch_size": 10, "averaging": 0.5}
LIVES = [
    (Reconstruction(optimizer=Adam(0.01), **SHORT), "sigmoid"),
    (Denoising(Masking(0.3), walkback=2, learning_rate=0.1, **SHORT), "sigmoid"),
    (Denoising(GaussianNoise(0.3), (1, 0.5), 1, optimizer=Adam(0.01), **SHORT), "tanh"),
    (Sparsity(optimizer=SGD(0.1, momentum=0.5), **SHORT), "sigmoid"),
    (Sparsity(KSparse(1, start=4), optimizer=Adam(0.01), **SHORT), "identity"),
    (Sparsity(Lifetime(0.2), **SHORT), "relu"),
    (Contraction(HessianContractive(), optimizer=Adam(0.01), **SHORT), "sigmoid"),
    (Contraction(Hutchinson(), SaltAndPepper(0.2), **SHORT), "sigmoid"),
    (Saturation(validation_fraction=0.2, **SHORT), "relu"),
]
life = pytest.mark.parametrize(
    ("trainer", "activation"), LIVES, ids=lambda v: v if isinstance(v, str) else type(v).__name__
)


class Stop:
    """A callback that interrupts after two epochs, as a power cut would."""

    def __call__(self, model: Any, state: Any, info: Any) -> bool:
        return state.epoch == 2


def same(a: Any, b: Any) -> None:
    for part in ("params", "carry"):
        one, other = getattr(a._state, part), getattr(b._state, part)
        assert one.keys() == other.keys()
        for key, value in one.items():
            np.testing.assert_array_equal(value, other[key], err_msg=key)


@life
def test_resume_is_bit_exact(trainer: Any, activation: str, tmp_path: Any) -> None:
    x = reals(40).astype(np.float32)
    whole = fitted(trainer, x, activation=activation)
    broken = fitted(clone(trainer).set_params(callbacks=[Stop()]), x, activation=activation)
    assert broken.n_iter_ == 2
    broken.trainer_.callbacks = ()
    broken.set_params(trainer=broken.trainer_)
    broken.save(tmp_path / "broken.h5")
    resumed = load(tmp_path / "broken.h5").resume(x)
    same(resumed, whole)
    again, wanted = (m.history_ | {"seconds": 0} for m in (resumed, whole))
    assert again == wanted


@life
def test_partial_fits_are_one_constant_fit(trainer: Any, activation: str) -> None:
    x = reals(40).astype(np.float32)
    optimizer = clone(trainer.resolved_optimizer()).set_params(schedule=Constant())
    trainer = clone(trainer).set_params(
        learning_rate=None, optimizer=optimizer, validation_fraction=0.0
    )
    if "start" in repr(trainer):
        trainer.set_params(penalty=KSparse(1))  # an annealing needs a run with an end
    one = fitted(trainer, x, activation=activation)
    many = AutoEncoder(K, activation=activation, trainer=trainer, random_state=2)
    for _ in range(4):
        many.partial_fit(x)
    same(one, many)


@life
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_both_paths_agree_on_the_same_noise(
    trainer: Any, activation: str, dtype: Any, cupy: Any
) -> None:
    """Three updates, to rounding: entries of a draw that flip by it are not to be expected."""
    model, host, results = AutoEncoder(K, activation=activation), reals(30).astype(dtype), []
    trainer.validate(model)
    for xp in (np, cupy):
        x = host if xp is np else xp.asarray(host)
        params = model.init_params(x, ReplayStream(xp, 1))
        carry = trainer.start(model, params, x, ReplayStream(xp, 2))
        for step in range(3):
            rng = ReplayStream(xp, 3, step)
            sums = trainer.collect(model, params, carry, Batch(x, len(x), progress=0.1), rng)
            trainer.apply(model, params, carry, sums, Moment(0, step, 0.1))
        results.append({k: to_host(v) for k, v in (params | carry).items()})
    close = 1e-4 if dtype == np.float32 else 1e-10
    for name, value in results[0].items():
        assert value.dtype == results[1][name].dtype == dtype, name
        scale = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(results[1][name], value, atol=close * scale, err_msg=name)


@life
def test_a_step_does_not_wait_for_the_device(trainer: Any, activation: str, fake_cupy: Any) -> None:
    model, x = AutoEncoder(K, activation=activation), fake_cupy.asarray(reals(30, 8))
    x = x.astype(np.float32)
    params = model.init_params(x, stream(0, Purpose.INIT, 0, "cuda:0"))
    carry = trainer.start(model, params, x, stream(0, Purpose.START, 0, "cuda:0"))
    standin.Counter.syncs = 0
    for step in range(3):
        rng = stream(0, Purpose.COLLECT, step, "cuda:0")
        sums = trainer.collect(model, params, carry, Batch(x, len(x), progress=0.1), rng)
        trainer.apply(model, params, carry, sums, Moment(0, step, 0.1, rng))
    assert standin.Counter.syncs == 0


# ---------------------------------------------------------------- known answers


def descended(trainer: Any, model: Any, p: Any, x: np.ndarray, steps: int, rng: Any) -> Any:
    """The parameters after ``steps`` full-batch updates from one and the same noise."""
    carry = trainer.start(model, p, x, None)
    for step in range(steps):
        batch = Batch(x, len(x))
        sums = trainer.collect(model, p, carry, batch, rng() if callable(rng) else rng)
        trainer.apply(model, p, carry, sums, Moment(0, step, None))
    return p


def corners(d: int) -> np.ndarray:
    return 1.0 - 2.0 * ((np.arange(1 << d)[:, None] >> np.arange(d)) & 1)


MIXING = np.array([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.5, -0.5, 0.6]])


class ExactNoise(Stream):
    """For 64 rows, the 8 corners of a cube each 8 times: normals that are the other way round.

    Rows and noise then have exactly the moments of independent ones.
    """

    def normal(self, shape: Any = None, dtype: Any = np.float32, out: Any = None) -> Any:
        return np.tile(corners(3), (8, 1))


def test_linear_denoising_of_gaussian_noise_is_wieners_filter() -> None:
    """W W' = S(S + σ²)⁻¹, S the covariance; standardising divides both by scale², and drops out.

    The population is exact, the descent linear: 1e-9 is far above what 2000 steps leave.
    """
    x, sigma = 3 + np.repeat(corners(3), 8, axis=0) @ MIXING, 0.8
    S = np.cov(x.T, bias=True)
    model = AutoEncoder(3, activation="identity")
    trainer = Denoising(GaussianNoise(sigma), optimizer=SGD(0.05, momentum=0.9))
    p = model.init_params(x, stream(0, Purpose.INIT))
    p = descended(trainer, model, p, x, 2000, ExactNoise())
    wanted = S @ np.linalg.inv(S + sigma**2 * np.eye(3))
    np.testing.assert_allclose(p["W"] @ p["W"].T, wanted, atol=1e-9)
    step = model.decode(p, model.encode(p, x)) - (x.mean(0) + (x - x.mean(0)) @ wanted)
    np.testing.assert_allclose(step, 0, atol=1e-8)
    wrong = S @ np.linalg.inv(S + sigma * np.eye(3))
    assert np.abs(p["W"] @ p["W"].T - wrong).max() > 0.01


class ExactMasks(Stream):
    """Uniforms that mask at fraction ½: for each of 8 rows each of the 8 masks once."""

    def uniform(self, shape: Any = None, dtype: Any = np.float32, out: Any = None) -> Any:
        return (0.5 + 0.25 * np.tile(corners(3), (8, 1))).astype(dtype)


def test_linear_denoising_of_masks_is_its_regression() -> None:
    """x̃ → P Q⁻¹ x̃ with P = S q, Q_ij = S_ij q² off the diagonal and S_ii q on it, q the share
    that stays (Chen, Xu, Weinberger, Sha, 2012); untied, rows of mean 0."""
    x, q = np.repeat(corners(3), 8, axis=0) @ MIXING, 0.5
    S = x.T @ x / len(x)
    P, Q = q * S, q * q * S + np.diag(np.diag(S)) * (q - q * q)
    model = AutoEncoder(3, activation="identity", tied=False)
    trainer = Denoising(Masking(0.5), optimizer=SGD(0.05, momentum=0.9))
    p = model.init_params(x, stream(0, Purpose.INIT))
    p = descended(trainer, model, p, x, 6000, ExactMasks())
    np.testing.assert_allclose((p["W"] @ p["V"]).T, P @ np.linalg.inv(Q), atol=1e-8)
    assert np.abs((p["W"] @ p["V"]).T - S @ np.linalg.inv(Q)).max() > 0.01


def test_contraction_of_linear_codes_is_weight_decay() -> None:
    """strength ‖W‖², whose gradient is 2·strength·W: that of l2 = 2·strength; to rounding."""
    model, p, x, _, _ = prepared("identity", False, True)
    plain = gradient(Reconstruction(), model, p, x)
    contracted = gradient(Contraction(Contractive(0.3)), model, p, x)
    np.testing.assert_allclose(contracted["W"] - plain["W"], 2 * 0.3 * p["W"], atol=1e-13)
    for key in "cb":
        np.testing.assert_array_equal(contracted[key], plain[key])


@pytest.mark.parametrize("activation", ["relu", Shrink(0.3)], ids=["relu", "shrink"])
def test_saturation_of_half_lines_is_l1(activation: Any) -> None:
    """Bit for bit, over epochs of updates."""
    x, settings = reals(60), {"n_epochs": 5, "batch_size": 10, "learning_rate": 0.05}
    saturated = fitted(Saturation(Saturating(0.2), **settings), x, activation=activation)
    sparse = fitted(Sparsity(L1(0.2), **settings), x, activation=activation)
    same(saturated, sparse)
    plain = fitted(Reconstruction(**settings), x, activation=activation)
    assert np.abs(plain.params_["W"] - sparse.params_["W"]).max() > 1e-3


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_as_many_units_as_there_are_is_no_constraint(activation: str) -> None:
    x, settings = reals(60), {"n_epochs": 5, "batch_size": 10, "learning_rate": 0.05}
    all_stay = fitted(Sparsity(KSparse(K), **settings), x, activation=activation)
    same(all_stay, fitted(Reconstruction(**settings), x, activation=activation))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sparse_codes_of_an_orthonormal_dictionary_are_found(seed: int) -> None:
    """Two of eight axes at once: each unit is one axis, within a cosine of 0.98 (11 degrees, of
    which the minimum itself and the last steps need a few); a plain code mixes them."""
    rng = np.random.default_rng(seed)
    axes, codes = np.linalg.qr(rng.standard_normal((8, 8)))[0], np.zeros((2000, 8))
    for row in codes:
        row[rng.permutation(8)[:2]] = rng.uniform(1, 2, 2)
    settings = {"n_epochs": 60, "optimizer": Adam(0.01)}
    cosines = []
    for trainer in (Sparsity(KSparse(2, start=8), **settings), Reconstruction(**settings)):
        model = AutoEncoder(8, activation="relu", trainer=trainer, random_state=seed)
        W = model.fit(codes @ axes.T).components_
        cosines.append(np.abs(W / np.linalg.norm(W, axis=1, keepdims=True) @ axes))
    assert (cosines[0].max(axis=0) > 0.98).all() and (cosines[0].max(axis=1) > 0.98).all()
    assert (cosines[1].max(axis=1) < 0.98).any()


def test_a_denoiser_learns_the_score_of_the_smoothed_mixture() -> None:
    """(r(x) - x)/σ² against the exact score of p * N(0, σ²), weighted by that density: within 10%
    in root mean square (steps of 0.01 that fall to 0, 30 tanh units), a correlation above 0.99.

    The mixture without the smoothing is no such match.
    """
    sigma, x = 0.4, np.linspace(-2.5, 2.3, 97)[:, None]
    mixture = GaussianMixture(2)
    means, var = np.array([[-1.5], [1.0]]), np.array([0.1, 0.2])
    rng = np.random.default_rng(0)
    which = (rng.random(20_000) < 0.6).astype(int)
    rows = means[which] + np.sqrt(var[which])[:, None] * rng.standard_normal((20_000, 1))

    def score(var: np.ndarray) -> Any:
        p = {"w": np.log([0.4, 0.6]), "M": means, "L": 1 / np.sqrt(var)[:, None, None]}
        p |= {"floor": np.zeros(1), "offset": np.zeros(1)}
        return -mixture.input_grad(p, x)[:, 0], np.exp(-mixture.free_energy(p, x))

    exact, density = score(var + sigma**2)
    trainer = Denoising(GaussianNoise(sigma), n_epochs=40, batch_size=200, optimizer=Adam(0.01))
    model = AutoEncoder(30, activation="tanh", tied=False, trainer=trainer, random_state=0)
    got = (model.fit(rows).reconstruct(x) - x)[:, 0] / sigma**2

    def error(wanted: np.ndarray) -> float:
        square = density * (got - wanted) ** 2
        return float(np.sqrt(square.sum() / (density * wanted**2).sum()))

    assert error(exact) < 0.1 and np.corrcoef(got, exact)[0, 1] > 0.99
    assert error(score(var)[0]) > 0.3


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("trainer", "settings", "message"),
    [
        (Denoising(walkback=-1), {}, r"Denoising\.walkback must be an integer >= 0, got -1"),
        (Denoising(emphasis=(0, 0)), {}, r"emphasis must be two weights >= 0, not both 0"),
        (Denoising(emphasis=(1, -1)), {}, r"emphasis must be two weights"),
        (Denoising(emphasis=(1, np.nan)), {}, r"emphasis must be two weights"),
        (Denoising(emphasis=1.0), {}, r"emphasis must be two weights.*got 1\.0"),
        (Denoising(emphasis=(1, 1, 1)), {}, r"emphasis must be two weights"),
        (Denoising("masking"), {}, r"Denoising\.corruption must be a corruption such as Masking"),
        (Denoising(Masking), {}, r"Denoising\.corruption must be a corruption such as Masking"),
        (Denoising(Masking(1.5)), {}, r"Masking\.fraction must lie in \[0, 1\]"),
        (Reconstruction(penalties=L1()), {}, r"penalties must be a list or tuple, got L1"),
        (Reconstruction(penalties=[0.1]), {}, r"0\.1 is not a penalty of energyscape\.penalties"),
        (Sparsity(L1), {}, r"is not a penalty of energyscape\.penalties"),
        (Sparsity(L1(-1)), {}, r"L1\.strength must be >= 0, got -1"),
        (Sparsity(KL()), {"activation": "tanh"}, r"KL needs codes in \[0, 1\], those of Tanh"),
        (Saturation(), {"activation": "sigmoid"}, r"Saturating needs flat_distance.*Sigmoid"),
        (Contraction(), {"activation": TopK(2)}, r"Contractive needs curvature, which TopK"),
        (Contraction(), {"tied": False}, r"Contraction with Contractive needs tied=True"),
        (Sparsity(L1()), {"tied": False}, r"Sparsity with L1 needs tied=True"),
        (Denoising(learning_rate=1, optimizer=Adam()), {}, r"shorthand for SGD"),
    ],
    ids=lambda v: repr(v)[:40],
)
def test_settings_that_cannot_be_are_named(trainer: Any, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted(trainer, reals(20), **settings)


def test_untied_codes_may_be_constrained() -> None:
    model = fitted(Sparsity(KSparse(2), n_epochs=2), reals(20), activation="relu", tied=False)
    assert np.isfinite(model.params_["V"]).all()


def test_models_without_layers_are_refused() -> None:
    for trainer in (Reconstruction(), Denoising(), Sparsity(), Contraction(), Saturation()):
        name = type(trainer).__name__
        with pytest.raises(CapabilityError, match=rf"{name} cannot train RBM: it needs encoder"):
            RBM(3, trainer=trainer).fit(greys(20))
