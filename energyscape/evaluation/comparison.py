"""What `compare` found: a table to read, a file to keep, a picture, and who is best by what."""

from __future__ import annotations

import csv
import io
import math
import os
from typing import Any, NamedTuple

import numpy as np

from energyscape.evaluation.metrics import Measure
from energyscape.io import write_atomic
from energyscape.plotting import image_grid


class _Column(NamedTuple):
    key: str
    title: str
    unit: str
    larger: bool  # whether larger values are better


COLUMNS = (
    _Column("log_probability", "log p", "nats", True),
    _Column("log_density", "log density", "nats", True),
    _Column("pseudo_likelihood", "pseudo-lik.", "nats/bit", True),
    _Column("score_matching", "score match.", "per feature", False),
    _Column("energy_distance", "energy dist.", "to samples", False),
    _Column("auc_shuffled", "AUC", "shuffled", True),
    _Column("auc_foreign", "AUC", "foreign", True),
    _Column("auc_uniform", "AUC", "uniform", True),
    _Column("accuracy", "accuracy", "features", True),
)
_SPENT = ("seconds", "rows", "epochs", "planned")
_LARGE = 1e5  # from which on numbers have an exponent
_SHOWN, _ACROSS = 25, 6  # samples of a model in a picture, and models side by side
_LEGEND = (
    "± one standard error over rows and samples; what another seed of the training would do is\n"
    "not in it. * best, or within two standard errors of the best: those of the difference on the\n"
    "same rows, which are smaller."
)


class Comparison:
    """Result of `compare`; ``print`` it.

    Attributes
    ----------
    rows : list of dict
        One for each pair: ``model``, ``trainer``, ``status`` ("trained", "refused", "diverged" or
        "failed"), ``note``, ``seconds``, ``rows``, ``epochs`` and how many were ``planned`` (fewer
        where the time was up, or nothing was left to do), and by the name of each measure
        (those of `compare`) its value, with ``…_error``; of likelihoods also ``…_low`` and
        ``…_high``, the interval that follows from that of log Z, and ``…_by``, how that was found.
    references : list of dict
        The same of the training rows themselves (their distance to held-out rows, the accuracy of
        rows as features) and of independent bits or a Gaussian; status "reference".
    models : dict of (str, str) to model
        Fitted models by the names of model and trainer; one that diverged is at its last good
        epoch.
    samples : dict of (str, str) to array, shape (at most 64, n_features)
    test : array, shape (m, n_features)
        Held-out rows.
    image_shape : tuple of int, or None
    """

    def __init__(self, test: np.ndarray, image_shape: tuple[int, ...] | None = None) -> None:
        self.rows: list[dict[str, Any]] = []
        self.references: list[dict[str, Any]] = []
        self.models: dict[tuple[str, str], Any] = {}
        self.samples: dict[tuple[str, str], np.ndarray] = {}
        self.test, self.image_shape = test, image_shape
        self._measured: dict[tuple[str, str], dict[str, Measure]] = {}

    def add(
        self,
        row: dict[str, Any],
        measured: dict[str, Measure],
        model: Any = None,
        samples: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Take up a contender; its row with the measures in it."""
        key = _pair(row)
        full = row | _spelled(measured)
        if row["status"] == "reference":
            self.references.append(full)
            return full
        self.rows.append(full)
        self._measured[key] = measured
        if model is not None:
            self.models[key] = model
        if samples is not None:
            self.samples[key] = samples
        return full

    def best(self, measure: str) -> list[tuple[str, str]]:
        """Pairs that no other is better than by more than two standard errors, the best first.

        Differences are of the same rows. An interval of log Z counts against a claim: values that
        it might make equal are equal.

        Parameters
        ----------
        measure : str
            E.g. "log_density".
        """
        larger = {c.key: c.larger for c in COLUMNS}.get(measure)
        found = {k: m[measure] for k, m in self._measured.items() if measure in m}
        if larger is None or not found:
            known = [c.key for c in self._columns()]
            raise ValueError(f"no pair has {measure!r}; there are {', '.join(known)}")
        order = sorted(found, key=lambda k: found[k].value, reverse=larger)
        first = found[order[0]]
        return [key for key in order if not first.better(found[key], larger)]

    def _told_apart(self, measure: str) -> list[tuple[str, str]]:
        """The best pairs, where they are not all that there are."""
        best = self.best(measure)
        return best if len(best) < sum(measure in m for m in self._measured.values()) else []

    def __str__(self) -> str:
        return "\n".join([*self._table(), "", *self._remarks(), *self._verdict()])

    def _columns(self) -> list[_Column]:
        present = set().union(*self._measured.values()) if self._measured else set()
        return [column for column in COLUMNS if column.key in present]

    # ------------------------------------------------------------ text

    def _table(self) -> list[str]:
        """All but refused pairs, and the references, under each other."""
        shown = [row for row in self.rows if row["status"] != "refused"]
        rows = [*shown, *self.references]
        head = [("model", ""), ("trainer", "")]
        cells = [[row["model"] for row in rows], [row["trainer"] for row in rows]]
        for column in self._columns():
            key, stars = column.key, self._told_apart(column.key)
            head.append((column.title, column.unit))
            cells.append([_cell(row, key, _pair(row) in stars) for row in rows])
            if any(f"{key}_by" in row for row in shown):
                head.append(("log Z", "±"))
                cells.append([_interval(row, key) for row in rows])
        head += [(key, "") for key in _SPENT]
        cells += [[_spent(row, key) for row in rows] for key in _SPENT]
        if not any(row.get("planned", 0) > row["epochs"] for row in shown):
            del head[-1], cells[-1]
        head.append(("", ""))
        cells.append(["" if row["status"] in _PLAIN else row["status"] for row in rows])
        columns = [[*titles, *below] for titles, below in zip(head, cells, strict=True)]
        return _aligned(columns, gap_before=2 + len(shown))

    def _remarks(self) -> list[str]:
        """The legend, and what is to be said of pairs, once for all of which it is."""
        said: dict[str, list[str]] = {}
        for row in self.rows:
            if row["note"]:
                status = "" if row["status"] == "trained" else f" {row['status']}"
                said.setdefault(f"{status}: {row['note']}", []).append(_said(_pair(row)))
        return [_LEGEND, "", *(", ".join(pairs) + note for note, pairs in said.items()), ""]

    def _verdict(self) -> list[str]:
        """Who is best by what, and who by most of it."""
        lines = list[str]()
        wins, asked = (dict.fromkeys(self._measured, 0) for _ in range(2))
        for column in self._columns():
            judged = [k for k, m in self._measured.items() if column.key in m]
            if len(judged) < 2:
                continue
            best = self.best(column.key)
            for key in judged:
                asked[key] += 1
                wins[key] += key in best
            name = f"{column.title} ({column.unit})"
            if len(best) == len(judged):
                lines.append(f"{name}: tells none of them apart")
            else:
                equal = "" if len(best) == 1 else "; not told from it: "
                lines.append(f"Best by {name}: {_said(best[0])}{equal}{_listed(best[1:])}")
        shares = {key: wins[key] / n for key, n in asked.items() if n}
        if not shares:
            return ["There is nothing to choose between."]
        top = [key for key in shares if shares[key] == max(shares.values())]
        said = ", ".join(f"{_said(key)} ({wins[key]} of {asked[key]} measures)" for key in top)
        return [*lines, f"Most often the best, or not told from it: {said}."]

    def save_csv(self, path: str | os.PathLike[str]) -> None:
        """One line for each pair and reference, all that is in the rows; empty where there is none.

        Parameters
        ----------
        path : path-like
        """
        rows = [*self.rows, *self.references]
        present = {key for row in rows for key in row}
        measured = [f"{c.key}{end}" for c in COLUMNS for end in ("", *_ENDS)]
        names = ["model", "trainer", "status", *measured, *_SPENT, "note"]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, [n for n in names if n in present], restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(path, text.getvalue().encode())

    # ------------------------------------------------------------ picture

    def save_png(
        self,
        path: str | os.PathLike[str],
        *,
        image_shape: tuple[int, ...] | None = None,
        transformer: Any = None,
    ) -> None:
        """Measures with their errors, and samples where rows are images (needs matplotlib).

        Parameters
        ----------
        path : path-like
        image_shape : (h, w) or (h, w, 3), optional
            Default: that of `compare`.
        transformer : transformer, optional
            Its ``inverse_transform`` takes rows to pixels, e.g. the whitening that made them.
        """
        from matplotlib.figure import Figure

        shape = self.image_shape if image_shape is None else image_shape
        columns, shown = self._columns(), [k for k, m in self._measured.items() if m]
        if not shown:
            raise ValueError("no pair was trained: there is nothing to draw")
        drawn = {"held-out rows": self.test[:: max(1, len(self.test) // _SHOWN)][:_SHOWN]}
        drawn |= {"\n".join(k): self.samples[k] for k in shown if k in self.samples}
        across = min(len(drawn), _ACROSS)
        lines = 0 if shape is None else math.ceil(len(drawn) / across)
        tall, wide = 1.1 + 0.24 * len(shown), max(8.0, 2.0 + 1.75 * len(columns))
        heights = [tall, *([1.2 * wide / max(4, across) * lines] if lines else [])]
        figure = Figure(figsize=(wide, sum(heights)), layout="constrained")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
        upper, *lower = parts[:, 0]
        self._draw_measures(upper, columns, shown)
        if lower:
            _draw_samples(lower[0], drawn, (lines, across), shape, transformer)
        figure.savefig(path, dpi=120, format="png")

    def _draw_measures(self, figure: Any, columns: list[_Column], shown: list[Any]) -> None:
        panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for axes, column in zip(panels, columns, strict=True):
            best = self._told_apart(column.key)
            found = [self._measured[key].get(column.key) for key in shown]
            first = self._measured[self.best(column.key)[0]][column.key]
            low, high = _window(first.value, [one.value for one in found if one is not None])
            for y, (key, one) in enumerate(zip(shown, found, strict=True)):
                if one is None:
                    continue
                style: dict[str, Any] = {"color": "C3" if key in best else "C0", "ms": 4}
                if low <= one.value <= high:
                    error = 2 * one.difference_error(first)
                    reach = [[error + one.below], [error + one.above]]
                    axes.errorbar(one.value, y, xerr=reach, fmt="o", capsize=2, **style)
                else:
                    axes.plot(
                        np.clip(one.value, low, high), y, "<" if one.value < low else ">", **style
                    )
            self._draw_references(axes, column.key)
            better = "more is better" if column.larger else "less is better"
            axes.set_title(f"{column.title} ({column.unit})\n{better}", fontsize=8)
            axes.tick_params(labelsize=7)
            low, high = axes.get_xlim()
            if high - low < _NARROW:  # all but equal: not to look different
                axes.set_xlim((low + high - _NARROW) / 2, (low + high + _NARROW) / 2)
            axes.ticklabel_format(axis="x", useOffset=False)
            axes.locator_params(axis="x", nbins=4)
            axes.grid(axis="y", color="0.92", lw=0.6)
        panels[0].set_yticks(range(len(shown)), [_said(key) for key in shown])
        panels[0].set_ylim(len(shown) - 0.5, -0.5)
        figure.supxlabel(_CAPTION, fontsize=7)

    def _draw_references(self, axes: Any, key: str) -> None:
        """Lines of the references, where they do not dwarf what is compared."""
        low, high = axes.get_xlim()
        for row in self.references:
            if key in row and abs(2 * row[key] - low - high) < 3 * (high - low):
                style = ":" if row["model"] == "training rows" else "--"
                axes.axvline(row[key], color="0.6", lw=0.8, ls=style)


_CAPTION = (
    "Red: best, or not told from it. Triangles: off the scale.\n"
    "Bars: two standard errors of the difference from the best, and the interval of log Z.\n"
    "Grey: training rows (dotted), Gaussian or independent bits (dashed)."
)
_NARROW, _FAR, _EXTREME = 1e-3, 5.0, 0.005
_PLAIN = ("trained", "reference")  # nothing to be said of
_ENDS = ("_error", "_low", "_high", "_by")


def _window(best: float, values: list[float]) -> tuple[float, float]:
    """The range to draw: values much farther from the best than most are not to squeeze these."""
    away = np.abs(np.array(values) - best)
    away = away[away > 0]
    reach = _FAR * float(np.median(away)) if len(away) else math.inf
    return best - reach, best + reach


def _draw_samples(
    figure: Any,
    drawn: dict[str, np.ndarray],
    grid: tuple[int, int],
    shape: tuple[int, ...] | None,
    transformer: Any,
) -> None:
    side = math.isqrt(min(_SHOWN, *map(len, drawn.values())))
    rows = np.concatenate([some[: side**2] for some in drawn.values()])
    pixels = rows if transformer is None else np.asarray(transformer.inverse_transform(rows))
    # One scale for all, that of the data but for a few extremes.
    pixels = np.clip(pixels, *np.quantile(pixels[: side**2], [_EXTREME, 1 - _EXTREME]))
    image = image_grid(pixels, shape, n_columns=side, scale="all")
    tall = (len(image) - 1) // len(drawn)
    panels = figure.subplots(*grid, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for i, (axes, name) in enumerate(zip(panels, drawn, strict=False)):
        axes.imshow(image[i * tall : (i + 1) * tall + 1], cmap="gray", vmin=0, vmax=255)
        axes.set_title(name, fontsize=8)


def _spelled(measured: dict[str, Measure]) -> dict[str, Any]:
    """Measures as entries of a row."""
    row: dict[str, Any] = {}
    for name, found in measured.items():
        row |= {name: found.value, f"{name}_error": found.error}
        if found.found:
            row |= {
                f"{name}_low": found.value - found.below,
                f"{name}_high": found.value + found.above,
                f"{name}_by": found.found,
            }
    return row


def _pair(row: dict[str, Any]) -> tuple[str, str]:
    return row["model"], row["trainer"]


def _said(key: tuple[str, str]) -> str:
    return " / ".join(key)


def _listed(keys: list[tuple[str, str]]) -> str:
    return ", ".join(map(_said, keys))


def _cell(row: dict[str, Any], key: str, starred: bool) -> str:
    """A value with its error, to the digit that the error leaves certain, and its star."""
    if key not in row:
        return "·"
    value, error = row[key], row[f"{key}_error"]
    star = "*" if starred else " "
    if abs(value) >= _LARGE:
        return f"{value:.3g} ± {error:.1g}{star}"
    digits = 4 if error < 1e-3 else max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}{star}"


def _interval(row: dict[str, Any], key: str) -> str:
    """How log Z was found, and how far off it may be."""
    if f"{key}_by" not in row:
        return "·"
    by, value = row[f"{key}_by"], row[key]
    if by.startswith("exact"):
        return by
    return f"{by} {row[f'{key}_low'] - value:+.2g} {row[f'{key}_high'] - value:+.2g}"


def _spent(row: dict[str, Any], key: str) -> str:
    if key not in row:
        return "·"
    return f"{row[key]:.1f}" if key == "seconds" else f"{row[key]:,}"


def _aligned(columns: list[list[str]], gap_before: int) -> list[str]:
    """Lines of columns, names to the left and numbers to the right."""
    padded = []
    for i, column in enumerate(columns):
        width = max(map(len, column))
        left = i < 2 or i == len(columns) - 1
        padded.append([cell.ljust(width) if left else cell.rjust(width) for cell in column])
    lines = ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]
    return [*lines[:gap_before], "", *lines[gap_before:]]
