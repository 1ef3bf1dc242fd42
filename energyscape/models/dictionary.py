"""Dictionaries: where they begin, their best answer to codes, and atoms that nobody uses.

    min over D of Σ_i ½|x_i - Dh_i|²,   |d_j| = 1

is solved one atom at a time from A = Σhh' and B = Σxh' alone: given the others the best d_j is
parallel to b_j - Σ_{k≠j} d_k A_kj (Mairal et al., 2010, Algorithm 2, with norms of 1 instead of at
most 1), so that no step raises the objective.

References
----------
Mairal, J., Bach, F., Ponce, J., Sapiro, G. (2010). Online learning for matrix factorization and
sparse coding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from energyscape.backend import Array, is_gpu_array, namespace, to_host

# An atom is dead whose mean squared code is below this share of the average one, and a duplicate
# whose cosine with one that is used more is above that.
_DEAD, _DUPLICATE = 1e-4, 0.99
_TINY = float(np.finfo(np.float64).tiny)
_BLOCK = 16  # atoms that are gone through before the next product
_AT_ONCE = 20  # one atom of so many is replaced in an update, at most: some doubles are for good


def unit_columns(D: Array) -> Array:
    """Columns divided by their norms. Columns of zeros stay, and those whose norm is 1 up to
    rounding: to do it again changes nothing."""
    xp = namespace(D)
    squares = (D * D).sum(axis=0, dtype=np.float64)
    rounding = 4 * np.finfo(D.dtype).eps + 2 * math.sqrt(len(D)) * np.finfo(np.float64).eps
    stay = (squares == 0) | (abs(squares - 1) <= rounding)
    return D / xp.where(stay, 1, xp.sqrt(squares)).astype(D.dtype)


def first_atoms(x: Array, m: int, rng: Any) -> Array:
    """Random rows of ``x``, normalised; random directions where there are too few.

    Parameters
    ----------
    x : array, shape (n, n_features)
    m : int
    rng : Stream

    Returns
    -------
    array, shape (n_features, m)
        Atoms in columns, of norm 1.
    """
    xp = namespace(x)
    some = xp.flatnonzero((x * x).sum(axis=1) > 0)
    order = xp.argsort(rng.uniform((len(some),), np.float64))
    rows = x[some[order[:m]]]
    more = rng.normal((m - len(rows), x.shape[1]), x.dtype)
    return unit_columns(xp.concatenate([rows, more]).T)


def given_atoms(given: Any, shape: tuple[int, ...], axes: str, name: str) -> np.ndarray:
    """The user's atoms, on the host in float64.

    Parameters
    ----------
    given : array
    shape : tuple of int
        What they must have; atoms along the first axis.
    axes, name : str
        Of the axes, and of the setting, for errors.

    Raises
    ------
    ValueError
        For other shapes, NaN and infinity, and atoms that are 0.
    """
    given = np.asarray(to_host(given) if is_gpu_array(given) else given, np.float64)
    if given.shape != shape:
        raise ValueError(f"{name} must have shape {shape} ({axes}), got {given.shape}")
    if not np.isfinite(given).all():
        raise ValueError(f"{name} contains NaN or infinity")
    zero = np.flatnonzero((given**2).sum(axis=tuple(range(1, given.ndim))) == 0)
    if len(zero):
        few = ", ".join(map(str, zero[:5]))
        raise ValueError(
            f"{name} has {len(zero)} atom(s) of zeros (first: {few}), which cannot be normalised; "
            "leave them out"
        )
    return given


def best_atoms(D: Array, A: Array, B: Array, sweeps: int = 1) -> Array:
    """The dictionary after ``sweeps`` times the best answer of every atom to all others.

    Parameters
    ----------
    D : array, shape (n_features, m)
        Where it begins; unit columns.
    A : array, shape (m, m), float64
        Σ hh'.
    B : array, shape (n_features, m), float64
        Σ xh'.
    sweeps : int, default 1

    Returns
    -------
    array, shape (n_features, m), dtype of ``D``
        Atoms that no code uses stay.
    """
    xp, wide = namespace(D), np.float64
    # Atoms in rows, so that each is contiguous; A without what an atom gives of itself.
    atoms, target = (xp.ascontiguousarray(v.T.astype(wide)) for v in (D, B))
    others = A.copy()
    others.ravel()[:: len(A) + 1] = 0
    used = xp.diagonal(A) > 0
    for _ in range(sweeps):
        # What atoms outside a block explain is one product: 0.54 of the time of one at a time.
        for lo in range(0, len(atoms), _BLOCK):
            block = slice(lo, lo + _BLOCK)
            own, mine = others[block, block], atoms[block]
            ways = target[block] - others[block] @ atoms
            ways += own @ mine
            _in_turn(ways, own, mine, used[block])
    return unit_columns(atoms.T).astype(D.dtype)


def _in_turn(ways: Array, own: Array, atoms: Array, used: Array) -> None:
    """Each atom of a block in the direction of ``ways`` less what the block's others explain, in
    place; atoms that are not used, or have no direction, stay."""
    if is_gpu_array(atoms):
        xp = namespace(atoms)
        for way, row, atom, on in zip(ways, own, atoms, used, strict=True):
            way -= row @ atoms
            norm = xp.sqrt(way @ way)
            atom[...] = xp.where(on & (norm > 0), way / xp.maximum(norm, _TINY), atom)
        return
    for way, row, atom, on in zip(ways, own, atoms, used.tolist(), strict=True):
        way -= row.dot(atoms)  # half of what `@` costs a call
        norm = math.sqrt(way.dot(way))
        if on and norm > 0:
            np.divide(way, norm, out=atom)


def wasted(D: Array, usage: Array, positive: bool = False) -> Array:
    """Numbers of atoms that are dead, or doubles of one that is used more, the least used first
    where there are many.

    Parameters
    ----------
    D : array, shape (n_features, m)
    usage : array, shape (m,)
        Mean squared code of each atom.
    positive : bool, default False
        Codes are >= 0, so that an atom and its negative are two.

    Returns
    -------
    array of int, in ascending order
    """
    cosines = D.T @ D
    return alike_or_dead(cosines if positive else namespace(D).abs(cosines), usage)


def alike_or_dead(cosines: Array, usage: Array) -> Array:
    """The same from the cosines of all pairs, shape (m, m), without signs that codes may have."""
    xp = namespace(usage)
    double = xp.zeros(len(usage), bool)
    alike = (cosines > _DUPLICATE) & ~xp.eye(len(usage), dtype=bool)
    if bool(alike.any()):  # seldom
        order = xp.argsort(-usage, kind="stable")
        double[order] = xp.tril(alike[order[:, None], order[None]], -1).any(axis=1)
    found = xp.flatnonzero((usage < _DEAD * usage.mean()) | double)
    least = xp.argsort(usage[found], kind="stable")[: max(1, len(usage) // _AT_ONCE)]
    return xp.sort(found[least])


def worst_rows(residuals: Array, count: int) -> Array:
    """Up to ``count`` of the longest residuals that are not alike, normalised, as columns.

    Parameters
    ----------
    residuals : array, shape (n, n_features)
    count : int

    Returns
    -------
    array, shape (n_features, at most count)
    """
    xp = namespace(residuals)
    order = xp.argsort(-(residuals * residuals).sum(axis=1))
    found = unit_columns(residuals[order].T)
    cosines = xp.abs(found.T @ found)
    first = ~(xp.tril(cosines, -1) > _DUPLICATE).any(axis=1)
    first &= (found * found).sum(axis=0) > 0
    return found[:, first][:, :count]
