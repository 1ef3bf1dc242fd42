"""Metropolis flips of bits: propose x_i → 1 - x_i, accept where Exp(1) > ΔF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from energyscape.backend import Array, namespace, to_host
from energyscape.registry import register
from energyscape.samplers.base import Chains, Info, Sampler

# Two sums of energy differences count as equal within this share of the differences, and of the
# energies' own rounding.
_ADDITIVE, _ROUNDING = 1e-4, 1e-6
_TRIALS = 8


@register
class Metropolis(Sampler):
    """Flips of single bits, or of blocks of bits that do not interact (Metropolis et al., 1953).

    A step is one sweep: every block once, in an order drawn afresh. A flip costs one energy of
    every chain. Slower than `Gibbs` where that exists; it needs nothing but an energy.

    Parameters
    ----------
    blocks : sequence of sequences of int, optional
        Bits, as indices into a row, that are flipped at once, each accepted by itself. That is
        right only if no energy term joins two of them, which is checked at the start: one colour
        of a checkerboard, one layer given the other. Default: every bit by itself.
    """

    domains: ClassVar[tuple[str, ...]] = ("binary",)

    def __init__(self, blocks: Sequence[Sequence[int]] | None = None) -> None:
        self.blocks = blocks

    def check(self, target: Any, x: Array) -> None:
        super().check(target, x)
        bits = (x == 0) | (x == 1)
        if not bool((bits if target.free is None else bits | ~target.free).all()):
            raise ValueError("Metropolis flips bits: start must hold 0 and 1 alone")
        if self.blocks is None:
            return
        d = x[0].size
        flat = [int(i) for block in self.blocks for i in block]
        if sorted(flat) != list(range(d)):
            raise ValueError(f"blocks must name each of the {d} bits once, got {self.blocks!r}")
        for block in self.blocks:
            if len(block) > 1:
                self._check_independent(target, x, np.asarray(block))

    def _check_independent(self, target: Any, x: Array, block: np.ndarray) -> None:
        """Flips of a block that do not interact change the energy by the sum of their changes: for
        random subsets of the block, at random states, because the start may hide it."""
        xp, generator = namespace(x), np.random.default_rng(0)
        for _ in range(_TRIALS):
            bits = xp.asarray(generator.integers(0, 2, x.shape).astype(x.dtype))
            state = target.hold(bits)
            chosen = xp.asarray(generator.integers(0, 2, (len(x), len(block))).astype(x.dtype))
            moved = state.copy()
            flat = moved.reshape(len(x), -1)
            for j, i in enumerate(block.tolist()):
                flat[:, i] = xp.where(chosen[:, j] > 0, 1 - flat[:, i], flat[:, i])
            energy = target.energy(state)
            together = target.energy(moved) - energy
            each = chosen * (_flipped_energies(target, state, block) - energy[:, None])
            allowed = _ADDITIVE * float(abs(each).max()) + _ROUNDING * float(abs(energy).max())
            gap = float(abs(together - each.sum(axis=1)).max())
            if gap > allowed:
                raise ValueError(
                    f"bits {block.tolist()} interact: flipped at once they change the energy by "
                    f"{gap:.3g} more than one by one, so that they cannot share a block"
                )

    def step(self, target: Any, chains: Chains, rng: Any, passed: Any = None) -> Info:
        x, xp = chains.x.copy(), namespace(chains.x)
        energy = (target.forward(x) if passed is None else passed).energy()
        n, d = len(x), x[0].size
        flat = x.reshape(n, d)
        blocks = [np.array([i]) for i in range(d)] if self.blocks is None else self.blocks
        free = None if target.free is None else xp.broadcast_to(target.free, x.shape).reshape(n, d)
        accepted = xp.zeros(n, np.float64)
        for k in np.argsort(to_host(rng.uniform(len(blocks), np.float64))):
            block = np.asarray(blocks[k])
            change = _flipped_energies(target, x, block) - energy[:, None]
            change = xp.where(xp.isfinite(change), change, xp.inf)
            taken = rng.exponential(change.shape) > change
            for j, i in enumerate(block.tolist()):
                if free is not None:
                    taken[:, j] &= free[:, i]
                flat[:, i] = xp.where(taken[:, j], 1 - flat[:, i], flat[:, i])
            energy = energy + xp.where(taken, change, 0.0).sum(axis=1)
            accepted += taken.sum(axis=1)
        chains.x = x
        return {"acceptance": accepted / d}


def _flip(rows: Array, copy: int, bits: np.ndarray) -> None:
    for i in bits.tolist():
        rows[:, copy, i] = 1 - rows[:, copy, i]


def _flipped_energies(target: Any, x: Array, block: np.ndarray) -> Array:
    """Energies of every chain with each bit of ``block`` flipped, shape (n, len(block))."""
    xp, n = namespace(x), len(x)
    moved = xp.repeat(x, len(block), axis=0)
    for j, i in enumerate(block):
        _flip(moved.reshape(n, len(block), -1), j, np.array([i]))
    return target.tiled(len(block)).energy(moved).reshape(n, len(block))
