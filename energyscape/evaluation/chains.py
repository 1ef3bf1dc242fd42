"""A report on Markov chains: which quantities have mixed, and how many draws they are worth."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace, to_host
from energyscape.plotting import save_traces
from energyscape.samplers.diagnostics import autocorrelation, summary

_MIXED = 1.01  # R̂ above which chains have not mixed (Vehtari et al., 2021)
_ROWS, _PANELS, _LISTED, _LAGS = 10, 4, 5, 200
_COLUMNS = ("R-hat", "ESS bulk", "ESS tail", "mean", "sd", "MCSE")


class ChainReport:
    """R̂, effective sample sizes and Monte Carlo errors of every quantity; ``print`` it.

    Parameters
    ----------
    draws : array, shape (n_chains, n_draws, *event), real
        NumPy or CuPy, at least 4 draws; measured where they are.
    names : sequence of str, optional
        One for each quantity of the event, in C order; default ``x[i, j]``.
    energies : array, shape (n_chains, n_draws), optional
        Energy of each draw: one more quantity, shown first.
    superchains : int, optional
        For thousands of short chains: R̂ becomes nested R̂ of that many groups of neighbours.

    Attributes
    ----------
    rhat, ess_bulk, ess_tail, mean, sd, mcse_mean : arrays, shape event, float64, NumPy
        `energyscape.samplers.diagnostics` tells what they are. A quantity with draws that are not
        finite has NaN everywhere; one that never moved has ESS 0.
    energy : dict of str to float, or None
        The same six numbers of the energy.
    names : list of str
    draws, energies : arrays
        As they were given.

    Raises
    ------
    ValueError
        If the shapes of draws, energies and names, or the superchains, do not fit.

    References
    ----------
    Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021); Margossian et al. (2024).
    """

    def __init__(
        self,
        draws: Array,
        names: Sequence[str] | None = None,
        energies: Array | None = None,
        superchains: int | None = None,
    ) -> None:
        self.draws = namespace(draws).asarray(draws)
        self.energies = None if energies is None else namespace(energies).asarray(energies)
        self.superchains = superchains
        shape = self.draws.shape
        if self.energies is not None and self.energies.shape != shape[:2]:
            raise ValueError(
                f"energies of shape {shape[:2]} are wanted, one for each draw of each chain; got "
                f"shape {self.energies.shape}"
            )
        self.names = _names(names, shape[2:])
        self._named = names is not None
        found = {k: to_host(v) for k, v in summary(self.draws, superchains).items()}
        self.rhat, self.ess_bulk, self.ess_tail = (
            found[k] for k in ("rhat", "ess_bulk", "ess_tail")
        )
        self.mean, self.sd, self.mcse_mean = (found[k] for k in ("mean", "sd", "mcse_mean"))
        self.energy: dict[str, float] | None = None
        if self.energies is not None:
            found = summary(self.energies, superchains)
            self.energy = {k: float(v) for k, v in found.items()}

    def __str__(self) -> str:
        n_chains, n_draws = self.draws.shape[:2]
        labels, table = self._table()
        chains, quantities = _plural(n_chains, "chain"), _plural(len(labels), "quantit", "y", "ies")
        lines = [f"{chains} of {n_draws} draws, {quantities}"]
        lines += [f"  {line}" for line in self._verdict(labels, table)]
        rows = self._order(table)[:_ROWS]
        width = max(len(labels[i]) for i in rows)
        lines.append("  " + " " * width + "".join(f"{name:>11}" for name in _COLUMNS))
        for i in rows:
            rhat, bulk, tail, *rest = table[:, i]
            cells = [f"{rhat:.3f}", _count(bulk), _count(tail), *(f"{v:.4g}" for v in rest)]
            lines.append("  " + labels[i].ljust(width) + "".join(f"{c:>11}" for c in cells))
        if len(labels) > len(rows):
            lines.append(f"  ... and {len(labels) - len(rows)} more")
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Traces and autocorrelations of the worst few quantities as PNG (needs matplotlib)."""
        n_chains, n_draws = self.draws.shape[:2]
        labels, table = self._table()
        rows = self._order(table)[:_PANELS]
        flat = self.draws.reshape(n_chains, n_draws, -1)
        first = 0 if self.energies is None else 1
        traces, rhos = [], []
        for i in rows:
            x = flat[:, :, int(i) - first] if i >= first else self.energies
            traces.append(to_host(x))
            rhos.append(to_host(autocorrelation(x, min(_LAGS, n_draws - 1))))
        titles = [
            f"{labels[i]}: R-hat {table[0, i]:.3f}, ESS {_count(table[1:3, i].min())}" for i in rows
        ]
        save_traces(path, titles, np.stack(traces), np.stack(rhos))

    def to_arviz(self) -> Any:
        """The draws as ArviZ takes them (needs ``energyscape[diagnostics]``).

        Returns
        -------
        xarray.DataTree
            ``posterior["x"]`` of dimensions (chain, draw, …): the event's own, or one of the
            names where names were given; ``sample_stats["lp"]``, minus the energy, where energies
            were.

        Raises
        ------
        ImportError
            If arviz-base is not installed.
        """
        try:
            from arviz_base import from_dict
        except ImportError as error:
            raise ImportError(
                "to_arviz needs arviz-base: pip install energyscape[diagnostics]"
            ) from error
        draws = to_host(self.draws)
        groups: dict[str, dict[str, np.ndarray]] = {"posterior": {"x": draws}}
        coords, dims = {}, {}
        if self._named:
            groups["posterior"]["x"] = draws.reshape(*draws.shape[:2], -1)
            coords, dims = {"quantity": self.names}, {"x": ["quantity"]}
        if self.energies is not None:
            groups["sample_stats"] = {"lp": -to_host(self.energies)}
        return from_dict(groups, coords=coords, dims=dims)

    def _table(self) -> tuple[list[str], np.ndarray]:
        """Labels of all quantities, the energy first, and their numbers, a row per column shown."""
        keys = ("rhat", "ess_bulk", "ess_tail", "mean", "sd", "mcse_mean")
        table = np.stack([getattr(self, key).reshape(-1) for key in keys])
        if self.energy is None:
            return self.names, table
        energy = np.array([[self.energy[key]] for key in keys])
        return ["energy", *self.names], np.concatenate([energy, table], axis=1)

    def _order(self, table: np.ndarray) -> np.ndarray:
        """The energy, then what is not finite, then from the largest R̂ down; last what never moved.

        The pixels at the edge of an image may well be constant: they are counted above the table,
        and would only hide those that mix badly.
        """
        rhat, ess = table[0], table[1:3].min(axis=0)
        constant = (ess == 0) & ~np.isposinf(rhat)
        group = np.where(np.isnan(ess), 1, np.where(constant, 3, 2))
        if self.energy is not None:
            group[0] = 0
        return np.lexsort((ess, -np.nan_to_num(rhat, nan=0.0), group))

    def _verdict(self, labels: list[str], table: np.ndarray) -> list[str]:
        rhat, ess = table[0], table[1:3].min(axis=0)
        name = "R-hat" if self.superchains is None else f"nested R-hat ({self.superchains} groups)"
        if np.isnan(rhat).all():
            mixed = f"{name} unknown" + (", as of any single chain" * (len(self.draws) == 1))
        else:
            mixed = f"{name} above {_MIXED}: {np.sum(rhat > _MIXED)}"
            mixed += f" (largest {np.nanmax(rhat):.3f})"
        size = self.draws.shape[0] * self.draws.shape[1]
        finite = ess[~np.isnan(ess)]
        least = f"{_count(finite.min())} of {size}" if len(finite) else "unknown"
        if (finite == 0).any() and (finite > 0).any():
            least += f" ({_count(finite[finite > 0].min())} of those that moved)"
        lines = [f"{mixed}; minimum ESS: {least}"]
        for what, which in (("never moved", ess == 0), ("not finite", np.isnan(ess))):
            if which.any():
                some = [labels[i] for i in np.flatnonzero(which)[:_LISTED]]
                more = ", ..." if which.sum() > _LISTED else ""
                lines.append(f"{what}: {which.sum()} ({', '.join(some)}{more})")
        return lines


def _plural(n: int, stem: str, one: str = "", many: str = "s") -> str:
    return f"{n} {stem}{one if n == 1 else many}"


def _count(ess: float) -> str:
    return f"{ess:.1f}" if 0 < ess < 10 else f"{ess:.0f}"


def _names(names: Sequence[str] | None, event: tuple[int, ...]) -> list[str]:
    size = int(np.prod(event))
    if names is None:
        places = itertools.product(*map(range, event))
        return [f"x[{', '.join(map(str, i))}]" for i in places] if event else ["x"]
    if len(names) != size:
        raise ValueError(f"{size} names are wanted, one for each quantity; got {len(names)}")
    return [str(name) for name in names]
