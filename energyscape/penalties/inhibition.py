"""Who inhibits whom: matrices S for `Lateral`, made from a layout of the units or from codes.

All are NumPy's, symmetric, >= 0 and 0 on the diagonal.

References
----------
Szlam, A., Gregor, K., LeCun, Y. (2011). Structured sparse coding via lateral inhibition.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

from energyscape.backend import is_gpu_array, to_host
from energyscape.verbs import check_count


def ring_inhibition(m: int, inner: float, outer: float) -> np.ndarray:
    """Units on a ring that inhibit those at a distance between ``inner`` and ``outer``: neighbours
    may be on together.

    Parameters
    ----------
    m : int
        Units; neighbours lie at a distance of 1.
    inner, outer : float
        0 <= inner < outer; both excluded.

    Returns
    -------
    array, shape (m, m), float64, of zeros and ones
    """
    check_count("m", m, 2)
    return torus_inhibition(1, m, inner, outer)


def torus_inhibition(height: int, width: int, inner: float, outer: float) -> np.ndarray:
    """Units on a torus that inhibit those at a distance between ``inner`` and ``outer``.

    Parameters
    ----------
    height, width : int
        Units lie on a grid of this shape, whose opposite edges meet; C order.
    inner, outer : float
        0 <= inner < outer; both excluded. Distances are Euclidean.

    Returns
    -------
    array, shape (height·width, height·width), float64, of zeros and ones
    """
    check_count("height", height)
    check_count("width", width)
    if not 0 <= inner < outer:
        raise ValueError(f"inner and outer must be 0 <= inner < outer, got {inner!r}, {outer!r}")

    def squares(side: int) -> np.ndarray:
        apart = abs(np.arange(side)[:, None] - np.arange(side))
        return np.minimum(apart, side - apart) ** 2

    down, across = squares(height), squares(width)
    d = np.sqrt(down[:, None, :, None] + across[None, :, None, :])
    S = ((inner < d) & (d < outer)).reshape(height * width, -1).astype(np.float64)
    if not S.any():
        raise ValueError(f"no two units lie between {inner!r} and {outer!r} apart")
    return S


def tree_inhibition(depth: int, branching: int = 2) -> np.ndarray:
    """Units on a tree that inhibit all but their ancestors and descendants, by their distance in
    it: what is on together lies on a branch from the root to a leaf.

    Parameters
    ----------
    depth : int
        Edges from the root to a leaf.
    branching : int, default 2
        Children of each unit that is no leaf. Units are numbered level by level from the root, 0;
        the parent of i > 0 is (i - 1)//branching.

    Returns
    -------
    array, shape (m, m), float64
        m = 1 + branching + ... + branching^depth. 0 between a unit and its ancestors, else the
        edges between two units.
    """
    check_count("depth", depth)
    check_count("branching", branching, 2)
    # above[i, j]: j is i or an ancestor of it.
    above = np.eye(sum(branching**level for level in range(depth + 1)))
    for i in range(1, len(above)):
        above[i] += above[(i - 1) // branching]
    level, common = above.sum(axis=1), above @ above.T
    on_a_branch = (above + above.T) > 0
    return np.where(on_a_branch, 0.0, level[:, None] + level - 2 * common)


def learned_inhibition(H: Any, alpha: float, beta: float) -> np.ndarray:
    """The S that codes pay least for: little between units that are on together.

    It minimises the mean of ½|h|'S|h| over the rows among all S with

        S = S',    0 <= S <= beta,    S_ii = 0,    Σ_i S_ij = alpha for each j,

    a linear programme in the entries above the diagonal (so that S is symmetric from the start),
    solved exactly. For a dictionary that fits, take codes and S in turns.

    Parameters
    ----------
    H : array, shape (n, m)
        Codes.
    alpha : float
        What each unit inhibits in all, in (0, beta·(m - 1)].
    beta : float
        Most that two units inhibit each other.

    Returns
    -------
    array, shape (m, m), float64, on the host
        Where several are as good, one of them.
    """
    size = abs(np.asarray(to_host(H) if is_gpu_array(H) else H, np.float64))
    if size.ndim != 2 or size.shape[1] < 2 or not len(size) or not np.isfinite(size).all():
        raise ValueError(f"H must be finite codes of 2 units or more, got shape {size.shape}")
    m = size.shape[1]
    if not 0 < alpha <= beta * (m - 1) < math.inf:
        raise ValueError(
            f"alpha must be in (0, beta * (n_components - 1)], got alpha={alpha!r} and "
            f"beta={beta!r} for {m} units"
        )
    one, other = np.triu_indices(m, 1)
    together = (size.T @ size)[one, other]
    together /= together.max() or 1.0
    pair = np.arange(len(one))
    ends = np.concatenate([one, other]), np.concatenate([pair, pair])
    sums = csr_array((np.ones(2 * len(pair)), ends), shape=(m, len(pair)))
    found = linprog(together, A_eq=sums, b_eq=np.full(m, alpha / beta), bounds=(0, 1))
    S = np.zeros((m, m))
    S[one, other] = beta * np.clip(found.x, 0.0, 1.0)
    return S + S.T
