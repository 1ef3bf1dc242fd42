"""What an update of each model cannot do without: the products, passes and draws of `roofline.py`.

Declared by hand from the mathematics, not from the code: (m, k, n) is the product of an m×k with a
k×n matrix, "gram" the product X'X of an m×k matrix with itself, of which half is computed. A write
is one pass over an array that an update leaves behind or hands on besides products: rows of the
batch, outputs of non-linearities, states of chains, parameters with what the optimiser keeps.
A normal number counts as a uniform one. "Other" are factorisations and transforms, timed by
themselves. Where inference or a trajectory iterates, the number of iterations is that which was
made.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

F = np.float32


@dataclass
class Floor:
    """Lists of (times, shape).

    Attributes
    ----------
    products, grams : lists of (times, (m, k, n)) and (times, (m, k))
    writes, draws : lists of (times, shape)
    others : list of (times, function)
    """

    products: list[tuple[float, tuple[int, ...]]] = field(default_factory=list)
    grams: list[tuple[float, tuple[int, ...]]] = field(default_factory=list)
    writes: list[tuple[float, tuple[int, ...]]] = field(default_factory=list)
    draws: list[tuple[float, tuple[int, ...]]] = field(default_factory=list)
    others: list[tuple[float, Callable[[], Any]]] = field(default_factory=list)

    def __add__(self, more: Floor) -> Floor:
        both = zip(vars(self).values(), vars(more).values(), strict=True)
        return Floor(*(a + b for a, b in both))

    def __rmul__(self, times: float) -> Floor:
        return Floor(*([(times * n, what) for n, what in part] for part in vars(self).values()))

    def seconds(self, most: float) -> dict[str, float]:
        """Of one update by kind, from as many repetitions as fit into ``most`` seconds."""
        return {
            "products": _time(self.products, _product, most) + _time(self.grams, _gram, most),
            "writes": _time(self.writes, _write, most),
            "draws": _time(self.draws, _draw, most),
            "other": _time(self.others, lambda call: call, most),
        }


def _time(parts: list[Any], maker: Callable[[Any], Callable[[], Any]], most: float) -> float:
    """Seconds of all calls of one kind, one after the other as in an update."""
    if not parts:
        return 0.0
    calls = [(n, _made(maker, what)) for n, what in parts]
    total, rounds, begin = 0.0, 0, time.perf_counter()
    while rounds < 3 or time.perf_counter() - begin < most:
        for n, call in calls:
            whole = max(1, min(20, round(n)))  # of many calls, some stand for all
            start = time.perf_counter()
            for _ in range(whole):
                call()
            total += (time.perf_counter() - start) * n / whole
        rounds += 1
    return total / rounds


_KEPT: dict[Any, Callable[[], Any]] = {}


def _made(maker: Callable[[Any], Callable[[], Any]], what: Any) -> Callable[[], Any]:
    """The call, made once, so that its arrays are there."""
    key = maker.__name__, what
    if key not in _KEPT:
        _KEPT[key] = maker(what)
    return _KEPT[key]


def _normal(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape, F)


def _product(shape: tuple[int, int, int]) -> Callable[[], Any]:
    m, k, n = shape
    a, b, out = _normal(m, k), _normal(k, n), np.empty((m, n), F)
    return lambda: np.matmul(a, b, out=out)


def _gram(shape: tuple[int, int]) -> Callable[[], Any]:
    m, k = shape
    a, out = _normal(m, k), np.empty((k, k), F)
    return lambda: np.matmul(a.T, a, out=out)


def _write(shape: tuple[int, ...]) -> Callable[[], Any]:
    a, out, one = _normal(*shape), np.empty(shape, F), F(1)
    return lambda: np.multiply(a, one, out=out)


def _draw(shape: tuple[int, ...]) -> Callable[[], Any]:
    rng, out = np.random.Generator(np.random.SFC64(0)), np.empty(shape, F)
    return lambda: rng.random(dtype=F, out=out)


# ---------------------------------------------------------------- machines


def rbm(d: int, k: int, n: int, chains: int, kept: int = 1) -> Floor:
    """PCD-1; ``kept`` arrays of the weights' size are written (weights, averages)."""
    both = n + chains
    return Floor(
        products=[(1, (chains, k, d)), (1, (both, d, k)), (1, (d, both, k))],
        writes=[(1, (n, d)), (1, (chains, d)), (1, (both, k)), (1, (chains, k)), (kept, (d, k))],
        draws=[(1, (chains, d)), (1, (chains, k))],
    )


def deep_boltzmann(d: int, k: int, top: int, n: int, rounds: int) -> Floor:
    """Two hidden layers; ``rounds`` of mean field at the data, one sweep of as many chains."""
    up, down, over, under = (n, d, k), (n, k, d), (n, k, top), (n, top, k)
    return Floor(
        # x W1 once; each round both ways between the layers, the first has no top yet; then p(h1)
        # at the last top. Chains: both sides given h1, and back.
        products=[
            (1, up),
            (rounds, over),
            (rounds, under),
            (1, down),
            (1, over),
            (1, up),
            (1, under),
            (1, (d, 2 * n, k)),
            (1, (k, 2 * n, top)),
        ],
        writes=[
            (1, (n, d)),
            (rounds + 1, (n, k)),
            (rounds, (n, top)),
            (1, (n, d + top)),
            (2, (n, k)),
            (1, (d, k)),
            (1, (k, top)),
        ],
        draws=[(1, (n, d + top)), (1, (n, k))],
    )


def tiled_rbm(side: int, channels: int, tile: int, stride: int, k: int, n: int) -> Floor:
    """One product a set of windows where an RBM has one."""
    sets, size = tile // stride, tile * tile * channels
    rows = n * ((side - tile + stride) // tile) ** 2
    return Floor(
        products=[
            (sets, (rows, k, size)),
            (sets, (2 * rows, size, k)),
            (sets, (size, 2 * rows, k)),
        ],
        writes=[
            (1, (n, side * side * channels)),
            (1, (rows, size)),
            (sets, (2 * rows, k)),
            (sets, (rows, k)),
            (sets, (size, k)),
        ],
        draws=[(1, (rows, size)), (sets, (rows, k))],
    )


# ---------------------------------------------------------------- chains that HMC moves


def trajectory(n: int, d: int, k: int, leaps: int, more: Floor | None = None) -> Floor:
    """``leaps`` steps: the gradient at the start, which new parameters changed, and after each;
    two products with the filters for each, and what ``more`` says. Outputs of units, momenta and
    states are written."""
    gradient = Floor(products=[(1, (n, d, k)), (1, (n, k, d))], writes=[(1, (n, k))])
    gradient = gradient if more is None else gradient + more
    step = Floor(writes=[(2, (n, d))])
    return (leaps + 1) * gradient + leaps * step + Floor(draws=[(1, (n, d))])


def gated(d: int, filters: int, means: int, n: int, pools: bool, leaps: int = 20) -> Floor:
    """Filters are seen through a whitening, once an update each way; with P two more products
    for each gradient, and three for the parameters."""
    units = filters + means
    more = Floor(products=[(2, (n, filters, filters))], writes=[(2, (n, filters))])
    floor = trajectory(n, d, units, leaps, more if pools else None) + Floor(
        products=[(2, (d, d, filters)), (1, (n, d, units)), (1, (d, 2 * n, units))],
        writes=[(1, (n, d)), (1, (n, units)), (2, (d, units))],
    )
    if not pools:
        return floor
    return floor + Floor(
        products=[(2, (n, filters, filters)), (1, (filters, 2 * n, filters))],
        writes=[(2, (n, filters)), (2, (filters, filters))],
    )


def field_of(
    n: int,
    side: int,
    torus: int,
    sets: int,
    places: int,
    size: int,
    units: int,
    stationary: bool,
    leaps: int = 20,
) -> Floor:
    """Windows of whole images: products as of patches, and for each gradient the transforms that
    lead from chain states to images and back; a Gaussian that is not ``stationary`` takes a product
    of its own."""
    rows = n * places
    rng = np.random.default_rng(0)
    image = rng.standard_normal((n, torus, torus), F)

    def transforms() -> None:
        import scipy.fft

        for _ in range(2):
            wave = scipy.fft.rfft2(image, axes=(1, 2))
            scipy.fft.irfft2(wave, s=(torus, torus), axes=(1, 2))

    gradient = Floor(
        products=[(sets, (rows, size, units)), (sets, (rows, units, size))],
        writes=[(sets, (rows, units))],
        others=[(1, transforms)],
    )
    if not stationary:
        gradient += Floor(products=[(sets, (rows, size, size))])
    return (
        (leaps + 1) * gradient
        + Floor(writes=[(2 * leaps, (n, torus, torus)), (2 * sets, (size, units))])
        + Floor(
            products=[(sets, (rows, size, units)), (sets, (size, 2 * rows, units))],
            writes=[(1, (n, side, side)), (sets, (rows, units))],
            draws=[(1, (n, torus, torus))],
        )
    )


# ---------------------------------------------------------------- networks


def layers(n: int, sizes: tuple[int, ...], batch: int | None = None, kept: int = 3) -> Floor:
    """Forward, and back to the parameters alone; ``kept`` arrays of the parameters' size are
    written: 1 with plain SGD, 3 with Adam."""
    floor = Floor(writes=[(1, (n if batch is None else batch, sizes[0]))])
    for i, (d, k) in enumerate(itertools.pairwise(sizes)):
        back = [(1, (n, k, d))] if i else []
        floor += Floor(
            products=[(1, (n, d, k)), (1, (d, n, k)), *back],
            writes=[(2, (n, k)), (kept, (d, k))],
        )
    return floor


def autoencoder(n: int, sizes: tuple[int, ...], kept: int = 3) -> Floor:
    """Tied weights: `layers` up and down, whose parameters are written once."""
    down = layers(n, sizes + sizes[-2::-1], kept=0)
    return down + Floor(writes=[(kept, (d, k)) for d, k in itertools.pairwise(sizes)])


# ---------------------------------------------------------------- sums over rows


def eigen(d: int) -> Callable[[], Any]:
    """All eigenvectors of a symmetric d×d matrix in float64."""
    a = np.random.default_rng(0).standard_normal((2 * d, d))
    a = a.T @ a
    return lambda: np.linalg.eigh(a)


def solve(d: int) -> Callable[[], Any]:
    """One linear system of d equations in float32."""
    a, b = _normal(d, d), _normal(d)
    return lambda: np.linalg.solve(a, b)


# ---------------------------------------------------------------- sparse codes


def sparse(n: int, d: int, m: int, iterations: float, pull: bool = False, frames: int = 1) -> Floor:
    """D'D and D'x, an m×m product and two written arrays (codes, and where the next step begins)
    for each iteration of each row, the dictionary's gradient; with ``pull`` an affine encoder."""
    rows = n * frames
    floor = Floor(
        products=[
            (1, (m, d, m)),
            (1, (rows, d, m)),
            (iterations, (rows, m, m)),
            (1, (rows, m, d)),
            (1, (d, rows, m)),
        ],
        writes=[(1, (rows, d)), (2 * iterations, (rows, m)), (1, (rows, d)), (1, (d, m))],
    )
    if not pull:
        return floor
    return floor + Floor(
        products=[(1, (rows, d, m)), (1, (d, rows, m))], writes=[(2, (rows, m)), (1, (d, m))]
    )


def unrolled(n: int, d: int, m: int, steps: int, learns_dictionary: bool = False) -> Floor:
    """We'x once, S at each step, and back."""
    floor = Floor(
        products=[
            (1, (n, d, m)),
            (2 * steps, (n, m, m)),
            (steps, (m, n, m)),
            (1, (d, n, m)),
        ],
        writes=[(1, (n, d)), (2 * steps + 2, (n, m)), (1, (d, m)), (1, (m, m))],
    )
    if not learns_dictionary:
        return floor
    return floor + Floor(
        products=[(2, (n, m, d)), (1, (d, n, m))], writes=[(1, (n, d)), (1, (d, m))]
    )


def conv_sparse(
    n: int, side: int, size: int, k: int, iterations: float, admm: bool = False
) -> Floor:
    """D and D' as products of windows with filters at each iteration, and with the residual for
    the filters' gradient. FISTA here belongs to a model with an encoder, of as many windows; ADMM
    solves on the torus, with a code at every pixel and a transform each way."""
    places, encodes = n * (side if admm else side - size + 1) ** 2, not admm
    image = np.random.default_rng(0).standard_normal((n, side, side), F)

    def transforms() -> None:
        import scipy.fft

        wave = scipy.fft.rfft2(image, axes=(1, 2))
        scipy.fft.irfft2(wave, s=(side, side), axes=(1, 2))

    each = Floor(
        products=[(1, (places, k, size * size)), (1, (places, size * size, k))],
        writes=[(2, (places, k)), (1, (n, side, side))],
        others=[(1, transforms)] if admm else [],
    )
    once = Floor(
        products=[(2, (size * size, places, k))] if encodes else [(1, (size * size, places, k))],
        writes=[(1, (n, side, side)), (1, (k, size * size))],
    )
    return iterations * each + (2 if encodes else 1) * each + once


def local_sparse(n: int, side: int, size: int, period: int, iterations: float) -> Floor:
    """The same where each place of a tile has a filter of its own: one number a window."""
    windows = n * ((side - size + 1) // period) ** 2
    each = Floor(
        products=[(2 * period**2, (windows, size * size, 1))],
        writes=[(2, (windows, period**2)), (1, (n, side, side))],
    )
    once = Floor(
        products=[(2 * period**2, (size * size, windows, 1))],
        writes=[(1, (n, side, side)), (1, (period**2, size * size))],
    )
    return iterations * each + 2 * each + once
