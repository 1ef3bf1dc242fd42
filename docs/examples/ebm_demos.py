"""Which losses make an energy collapse: y = x² learned by two architectures (LeCun et al., 2006).

    A  E(x, y) = ½(G(x) - y)²              a regression: some y has a high energy whatever G is
    B  E(x, y) = Σ_j |G₁(x)_j - G₂(y)_j|   implicit: G₁ = G₂ = const makes it 0 everywhere

For every pair (x, y) on the curve the loss compares its energy p = E(x, y) with those q of other
answers to the same x, from a grid. The energy loss pushes p down and nothing up, the perceptron is
content once no answer has less energy than p: neither keeps a margin, and B may collapse.
Square-square and the negative log-likelihood (NLL) keep one, and it does not.

    python docs/examples/ebm_demos.py --out out/ebm_demos.png
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from energyscape.layers import Identity, LayerPass, Tanh, backward_chain
from energyscape.losses import NLL, Energy, Perceptron, SquareSquare
from energyscape.optim import Adam, Moment
from energyscape.verbs import Param

LOSSES = {
    "energy": Energy(),
    "perceptron": Perceptron(),
    "square-square": SquareSquare(1.0),
    "NLL": NLL(20.0),  # of deviation 0.22 in A, whose energies have no scale to learn
}
LOW, HIGH = -0.5, 1.5  # answers; x is from [-1, 1]
ANSWERS, EPSILON = 41, 0.2  # in the grid, and how far from y an answer is wrong
UPDATES, BATCH, RATE, SEED = 4000, 50, 0.01, 0
UNITS, OUTPUTS = 20, 10


def curve(x: np.ndarray) -> np.ndarray:
    """What is to be learned."""
    return x**2


class Net:
    """Two layers of the library, tanh and linear; ``name`` keeps its arrays apart from others'."""

    def __init__(self, name: str, outputs: int) -> None:
        self.name, self.outputs = name, outputs

    def init_params(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        sizes, found = [(1, UNITS), (UNITS, self.outputs)], {}
        for i, (below, above) in enumerate(sizes):
            bound = math.sqrt(6 / (below + above))
            found[f"{self.name}W{i}"] = rng.uniform(-bound, bound, (below, above))
            found[f"{self.name}c{i}"] = np.zeros(above)
        return found

    def forward(self, params: dict[str, np.ndarray], x: np.ndarray) -> list[LayerPass]:
        W, c = (f"{self.name}W", f"{self.name}c")
        first = LayerPass(x[:, None], params[f"{W}0"], params[f"{c}0"], Tanh())
        return [first, LayerPass(first.h, params[f"{W}1"], params[f"{c}1"], Identity())]

    def backward(self, passes: list[LayerPass], dh: np.ndarray) -> dict[str, np.ndarray]:
        grads, _ = backward_chain(passes, dh)
        found = {}
        for i, (dW, dc) in enumerate(grads):
            found |= {f"{self.name}W{i}": dW, f"{self.name}c{i}": dc}
        return found


class Regression:
    """Architecture A."""

    name = "A: ½(G(x) − y)²"

    def __init__(self) -> None:
        self.G = Net("", 1)

    def init_params(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return self.G.init_params(rng)

    def evaluate(
        self, params: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray
    ) -> tuple[np.ndarray, Callable[[np.ndarray], dict[str, np.ndarray]]]:
        """E of every answer in ``y``, (k, n), to the n questions ``x``; and what turns slopes of a
        loss in E into those in the parameters."""
        passes = self.G.forward(params, x)
        away = passes[-1].h[:, 0] - y
        return 0.5 * away**2, lambda slopes: self.G.backward(
            passes, (slopes * away).sum(axis=0)[:, None]
        )


class Implicit:
    """Architecture B."""

    name = "B: |G₁(x) − G₂(y)|"

    def __init__(self) -> None:
        self.G1, self.G2 = Net("1", OUTPUTS), Net("2", OUTPUTS)

    def init_params(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return self.G1.init_params(rng) | self.G2.init_params(rng)

    def evaluate(
        self, params: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray
    ) -> tuple[np.ndarray, Callable[[np.ndarray], dict[str, np.ndarray]]]:
        """As `Regression.evaluate`."""
        one, two = self.G1.forward(params, x), self.G2.forward(params, y.ravel())
        away = one[-1].h - two[-1].h.reshape(*y.shape, OUTPUTS)

        def backward(slopes: np.ndarray) -> dict[str, np.ndarray]:
            pull = slopes[:, :, None] * np.sign(away)
            grads = self.G1.backward(one, pull.sum(axis=0))
            return grads | self.G2.backward(two, -pull.reshape(-1, OUTPUTS))

        return abs(away).sum(axis=2), backward


def answers(loss: Any, y: np.ndarray) -> np.ndarray:
    """Every grid point for each of the n rows, (k, n). To the right ones, within EPSILON of y, a
    loss with a margin is given none: they are moved to the nearest wrong answer. The perceptron
    takes the least energy over all, as it is defined."""
    grid = np.linspace(LOW, HIGH, ANSWERS)[:, None] + 0 * y
    if isinstance(loss, Perceptron):
        return grid
    side = np.where(grid < y, -EPSILON, EPSILON)
    return np.where(abs(grid - y) < EPSILON, y + side, grid)


def train(architecture: Any, loss: Any, seed: int = SEED) -> dict[str, np.ndarray]:
    """Parameters after UPDATES steps of Adam on the mean loss."""
    rng = np.random.default_rng(seed)
    params = architecture.init_params(rng)
    specs, optimizer = {name: Param() for name in params}, Adam(RATE)
    carry = optimizer.start(params, specs)
    for step in range(UPDATES):
        x = rng.uniform(-1, 1, BATCH)
        y = curve(x)
        energy, backward = architecture.evaluate(params, x, np.vstack([y, answers(loss, y)]))
        p, q = energy[0], energy[1:]
        _, at_p, at_q = loss.evaluate(p, q - loss.margins(x, q), "worst")
        grads = backward(np.vstack([at_p, at_q]) / BATCH)
        optimizer.step(params, grads, carry, specs, Moment(0, step, step / UPDATES))
    return params


@dataclass
class Landscape:
    """A trained energy, and what is left of it.

    Attributes
    ----------
    energy : array, shape (81, 81)
        On a grid of the square, y along the first axis, less its least over the answers to each x:
        what is the same for all of them decides nothing.
    before, spread : float
        Its range (of the middle 90 %) over the answers to an x, the mean over x: before and after
        training. The losses that ask for a margin ask for 1.
    auc : float
        How often a right answer has less energy than a random one to the same x. Ranks alone: also
        what is left of a collapsed energy may be in order.
    """

    energy: np.ndarray
    before: float
    spread: float
    auc: float

    @property
    def collapsed(self) -> bool:
        """Whether answers differ by less than a tenth of what a margin asks for."""
        return self.spread < 0.1


def landscape(architecture: Any, loss: Any, seed: int = SEED) -> Landscape:
    """Train, and look."""
    x, y = np.linspace(-1, 1, 81), np.linspace(LOW, HIGH, 81)
    square = y[:, None] + 0 * x
    start = architecture.init_params(np.random.default_rng(seed))
    params = train(architecture, loss, seed)
    spreads = []
    for at in (start, params):
        energy = architecture.evaluate(at, x, square)[0]
        low, high = np.quantile(energy, [0.05, 0.95], axis=0)
        spreads.append(float((high - low).mean()))
    rng = np.random.default_rng(seed + 1)
    x = rng.uniform(-1, 1, 500)
    others = rng.uniform(LOW, HIGH, (100, len(x)))
    points = architecture.evaluate(params, x, np.vstack([curve(x), others]))[0]
    right = np.where(points[1:] == points[0], 0.5, points[1:] > points[0])
    return Landscape(energy - energy.min(axis=0), *spreads, float(right.mean()))


def demos(seed: int = SEED) -> dict[tuple[str, str], Landscape]:
    """All eight, by the names of architecture and loss."""
    return {
        (architecture.name, name): landscape(architecture, loss, seed)
        for architecture in (Regression(), Implicit())
        for name, loss in LOSSES.items()
    }


def picture(found: dict[tuple[str, str], Landscape], path: Path) -> None:
    """A row of energies for each architecture, from 0 (dark) to the margin, with the curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 5.6), layout="constrained")
    panels = figure.subplots(2, len(LOSSES), sharex=True, sharey=True)
    x = np.linspace(-1, 1, 81)
    for axes, ((_, loss), one) in zip(panels.ravel(), found.items(), strict=True):
        extent = (-1, 1, LOW, HIGH)
        axes.imshow(one.energy, cmap="magma", vmin=0, vmax=1, origin="lower", extent=extent)
        axes.plot(x, curve(x), color="white", linewidth=1, linestyle="--")
        fate = ", collapsed" if one.collapsed else ""
        axes.set_title(f"{loss}{fate}\nrange {one.spread:.2g}, AUC {one.auc:.2f}", fontsize=10)
        axes.set_xticks([-1, 0, 1])
        axes.set_yticks([0, 1])
    for axes, name in zip(panels[:, 0], dict.fromkeys(a for a, _ in found), strict=True):
        axes.set_ylabel(f"{name}\ny")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/ebm_demos.png"))
    options = parser.parse_args()
    results = demos()
    for (architecture, loss), one in results.items():
        print(
            f"{architecture:20s} {loss:14s} range {one.before:.2f} -> {one.spread:.4f}   "
            f"AUC {one.auc:.3f}   {'collapsed' if one.collapsed else ''}"
        )
    picture(results, options.out)
    print(options.out)
