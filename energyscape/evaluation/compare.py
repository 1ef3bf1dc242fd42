"""Which model, by which strategy? Every pair under one budget, judged on the same held-out rows.

The budget is rows through the gradient, seconds, or both, whichever ends first. Epochs and the
schedule of the learning rate are cut to it beforehand, so that what is compared are whole runs, not
beginnings of longer ones.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import clone

from energyscape.backend import Purpose, draw_seed, stream, to_host
from energyscape.errors import CapabilityError, DivergenceError, EnergyscapeError
from energyscape.evaluation import metrics
from energyscape.evaluation.comparison import Comparison
from energyscape.evaluation.held_out import HeldOut, flat, hold_out, references, separations
from energyscape.evaluation.metrics import Measure
from energyscape.progress import Bar
from energyscape.samplers import AIS
from energyscape.sources import open_rows
from energyscape.verbs import check_count, obstacle, speaks

_KEPT_SAMPLES = 64
# The trial that tells how long an epoch takes: rows, most epochs, share of the budget after which
# it ends; and the share that is planned with, as later epochs may be slower.
_TRIAL_ROWS, _TRIAL_EPOCHS, _TRIAL_SHARE, _PLANNED = 2000, 20, 0.05, 0.9


def compare(
    models: Any,
    trainers: Any,
    X: Any,
    y: Any = None,
    *,
    seconds: float | None = None,
    rows: int | None = None,
    X_test: Any = None,
    y_test: Any = None,
    foreign: Any = None,
    image_shape: tuple[int, ...] | None = None,
    ais: AIS | None = None,
    n_samples: int = 500,
    n_steps: int = 200,
    random_state: Any = 0,
    verbose: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    callback: Callable[[dict[str, Any]], Any] | None = None,
) -> Comparison:
    """Train every pair of a model and a trainer under one budget, and measure all on held-out rows.

    Parameters
    ----------
    models : dict of str to model, or sequence of models, or model
    trainers : dict of str to trainer, or sequence of trainers, or trainer, or None
        None takes the trainer that each model has, or its default one.
    X : array, shape (n, n_features), or images (n, h, w) or (n, h, w, channels)
        Taken into memory. Models of rows get images as rows, models of images get rows as images of
        ``image_shape``.
    y : array, shape (n,), optional
        Labels, for ``accuracy`` alone.
    seconds : float > 0, optional
        Wall time of each training. A trial of a few epochs on up to 2,000 rows, which does not
        count, says how many epochs fit; no epoch is begun that would end later.
    rows : int > 0, optional
        Rows through the gradient of each training, counted with their repetitions. Whole epochs: as
        many as fit. Where not even one fits, one epoch over a random part of the rows.
    X_test, y_test : arrays, optional
        Held-out rows and their labels, of which up to 2,000 are used; default: a random quarter of
        X, at most 2,000.
    foreign : array, shape (k, n_features), optional
        Rows of another kind, whose energies should be higher than those of the data. Default:
        uniform in the range of each feature of the training rows (fair coins, if these are bits).
    image_shape : (h, w) or (h, w, channels), optional
        Shape of a row as an image, for models of images and for pictures.
    ais : AIS, optional
        Where log Z is estimated; default ``AIS()``.
    n_samples : int, default 500
        Of each model, for the energy distance; by ``model.sample(n_samples, n_steps=n_steps)``.
    n_steps : int, default 200
    random_state : int, RandomState, Generator or None, default 0
        Of all: the split, the trainings, the measures. With ``rows`` alone the same call gives the
        same figures but for seconds; with ``seconds``, epochs depend on the machine.
    verbose : bool, default False
        Progress on stderr.
    clock : function, default time.perf_counter
        What ``seconds`` are counted by: ``time.process_time`` where others use the machine, too,
        and there is one thread.
    callback : function, optional
        Called with the row of each pair, as soon as it is done.

    Returns
    -------
    Comparison
        ``print`` it.

    Raises
    ------
    ValueError
        For no models or trainers, labels of another length, no budget, or data of no use.
    TypeError
        For objects that are no models or no trainers.

    Notes
    -----
    ``n_epochs`` of a trainer is set by the budget; all else stays. A pair that cannot be is a row
    that says why, and so is one that diverges, or whose settings do not go with the data.

    Measures, each with a standard error over rows:

    * ``log_probability`` (bits), ``log_density`` (reals): nats a row, with how log Z was found and
      the interval that follows from that. Those of bits and of reals do not compare.
    * ``pseudo_likelihood`` (bits): nats a bit, each bit given all others; ``score_matching``
      (reals, energies without kinks): Hyvärinen's score a feature, in units of their root mean
      square deviation, lower is better. Proper scores that need no log Z.
    * ``energy_distance``: between samples and held-out rows, squared, in units of the rows.
    * ``auc_shuffled``, ``auc_foreign`` (``auc_uniform`` without ``foreign``): how often the energy
      is higher at rows whose columns were shuffled, or at foreign rows, than at held-out ones.
    * ``accuracy``: of logistic regression on the features, where there are labels.
    """
    seed = draw_seed(random_state)
    _check_budget(seconds, rows)
    named = _named(models, "models", "free_energy")
    strategies = {"": None} if trainers is None else _named(trainers, "trainers", "collect")
    check_count("n_samples", n_samples, 3)
    data = hold_out(X, y, X_test, y_test, foreign, image_shape, seed)
    result = Comparison(flat(data.test), data.image_shape)
    for reference, measured in references(data, {model.domain for model in named.values()}):
        result.add({"model": reference, "trainer": "", "status": "reference"}, measured)
    ais = AIS() if ais is None else ais
    pairs = [(m, t) for m in named for t in strategies]
    for name, strategy in Bar(pairs, unit="pair", file=sys.stderr, disable=not verbose):
        run = _Run(named[name], strategies[strategy], data, seed, clock)
        row = {"model": name, "trainer": strategy or run.trainer_name} | run.train(seconds, rows)
        measured, samples = {}, None
        if row["status"] == "trained":
            measured, samples = run.measures(ais, n_samples, n_steps)
        row["note"] = "; ".join(run.notes)
        done = result.add(row, measured, run.model if run.fitted else None, samples)
        if callback is not None:
            callback(done)
    return result


# ---------------------------------------------------------------- input


def _check_budget(seconds: float | None, rows: int | None) -> None:
    if seconds is None and rows is None:
        raise ValueError("compare needs a budget: seconds, rows, or both")
    if seconds is not None and not 0 < seconds < math.inf:
        raise ValueError(f"seconds must be > 0, got {seconds!r}")
    if rows is not None:
        check_count("rows", rows)


def _named(given: Any, what: str, verb: str) -> dict[str, Any]:
    """Objects by name: keys of a dict, else their classes, with settings where these repeat."""
    if isinstance(given, Mapping):
        named = dict(given)
    else:
        items = list(given) if isinstance(given, Sequence) else [given]
        classes = [type(item).__name__ for item in items]
        named = {}
        for item, kind in zip(items, classes, strict=True):
            name = kind if classes.count(kind) == 1 else " ".join(repr(item).split())
            while name in named:
                name += "'"
            named[name] = item
    if not named:
        raise ValueError(f"compare needs at least one of {what}, got {given!r}")
    for name, item in named.items():
        if not callable(getattr(item, verb, None)) or isinstance(item, type):
            raise TypeError(f"{what} are instances, {name!r} is {item!r}")
    return named


# ---------------------------------------------------------------- one pair


class _Clock:
    """Counts rows and time, and stops a run that has no time for another epoch.

    Parameters
    ----------
    now : function
        The time in seconds.
    seconds : float or None
    least : int, default 1
        Epochs that are made in any case.
    """

    def __init__(
        self, now: Callable[[], float], seconds: float | None = None, least: int = 1
    ) -> None:
        self.now, self.seconds, self.least, self.rows = now, seconds, least, 0
        self.marks = [now()]

    def __call__(self, model: Any, state: Any, info: dict[str, float]) -> bool:
        self.marks.append(self.now())
        self.rows += state.n_rows
        if self.seconds is None or len(self.marks) <= self.least:
            return False
        return 2 * self.marks[-1] - self.marks[-2] - self.marks[0] > self.seconds

    def pace(self) -> tuple[float, float]:
        """(seconds of an epoch, seconds before the first)."""
        epochs = np.diff(self.marks)
        epoch = float(epochs[1:].mean() if len(epochs) > 1 else epochs[0])
        return epoch, max(0.0, float(epochs[0]) - epoch)


def _misfit(model: Any, trainer: Any) -> str | None:
    """Why the pair cannot be, in words: verbs by their names alone, as there may be many pairs."""
    missing = speaks(model, trainer.requires)
    if missing:
        return f"it needs {', '.join(missing)}, which {type(model).__name__} does not offer"
    return obstacle(model, trainer)


class _Run:
    """The training of one pair, and its measures."""

    def __init__(
        self, model: Any, trainer: Any, data: HeldOut, seed: int, now: Callable[[], float]
    ) -> None:
        self.data, self.seed, self.now, self.notes = data, seed, now, list[str]()
        self.model = clone(model).set_params(random_state=seed)
        given = model.trainer if trainer is None else trainer
        own = () if given is None else tuple(given.callbacks)
        trainer = model.default_trainer() if given is None else clone(given)
        self.trainer, self.callbacks = trainer, own
        self.trainer_name = type(trainer).__name__

    @property
    def fitted(self) -> bool:
        """Whether there is a model to show."""
        return self.model.__sklearn_is_fitted__()

    def train(self, seconds: float | None, rows: int | None) -> dict[str, Any]:
        """Train within the budget; status, seconds, rows through the gradient, and epochs."""
        why = _misfit(self.model, self.trainer) or self.data.misfit(self.model)
        if why is not None:
            self.notes.append(why)
            return {"status": "refused"}
        clock = _Clock(self.now)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                X, epochs = self._planned(seconds, rows)
                clock = _Clock(self.now, seconds)
                self._fit(self.model, X, epochs, clock)
                status = "trained"
            except DivergenceError as error:
                status = "diverged"
                self.notes.append(str(error))
            except CapabilityError as error:
                status = "refused"
                self.notes.append(str(error))
            except ValueError as error:  # settings that do not go with these rows
                status = "failed"
                self.notes.append(str(error))
        spent = {"seconds": self.now() - clock.marks[0], "rows": clock.rows}
        spent["epochs"] = self.model.n_iter_ if self.fitted else 0
        self._note(caught)
        settings = self.trainer.get_params(deep=False)
        if status == "trained" and "n_epochs" in settings:
            spent["planned"] = settings["n_epochs"]
        return {"status": status} | spent

    def _fit(self, model: Any, X: Any, epochs: int, clock: _Clock) -> None:
        settings: dict[str, Any] = {"callbacks": [*self.callbacks, clock]}
        if "n_epochs" in self.trainer.get_params(deep=False):
            settings["n_epochs"] = epochs
        model.trainer = self.trainer.set_params(**settings)
        try:
            model.fit(X)
        finally:  # what is kept or saved has the user's callbacks alone
            model.trainer.set_params(callbacks=self.callbacks)
            if hasattr(model, "trainer_"):
                model.trainer_.set_params(callbacks=self.callbacks)

    def _planned(self, seconds: float | None, rows: int | None) -> tuple[Any, int]:
        """The rows to train on and the number of epochs that the budget is good for."""
        X = self.data.shaped(self.model, self.data.train)
        share = 1 - self.trainer.validation_fraction
        afford = math.inf if rows is None else rows
        if seconds is not None:
            trial = _Clock(self.now, _TRIAL_SHARE * seconds, 2)
            trial_rows = self._part(X, _TRIAL_ROWS / share)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a run that is too short to say anything
                self._fit(clone(self.model), trial_rows, _TRIAL_EPOCHS, trial)
            epoch, before = trial.pace()
            speed = share * len(trial_rows) / epoch
            afford = min(afford, speed * max(0.0, _PLANNED * seconds - before))
        per_epoch = len(X) * share * self.trainer.n_init
        if afford >= per_epoch:
            return X, int(afford / per_epoch + 1e-9)
        part = self._part(X, afford / (share * self.trainer.n_init))
        self.notes.append(f"one epoch of {len(part):,} of the {len(X):,} rows is all that fits")
        return part, 1

    def _part(self, X: Any, n: float) -> Any:
        """About ``n`` random rows, in their order; at least a batch."""
        least = min(len(X), self.trainer.batch_size or _TRIAL_ROWS)
        rng = stream(self.seed, Purpose.SPLIT, 3)
        return open_rows(X).sample(min(len(X), max(least, int(n))), rng)

    def _note(self, caught: list[warnings.WarningMessage]) -> None:
        for warning in caught:
            text = str(warning.message)
            if text not in self.notes:
                self.notes.append(text)

    # ------------------------------------------------------------ measures

    def measures(
        self, ais: AIS, n_samples: int, n_steps: int
    ) -> tuple[dict[str, Measure], np.ndarray | None]:
        """Measures by name, and some flat samples."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = self._likelihoods(ais) | separations(self.model, self.data)
            samples = self._samples(n_samples, n_steps)
            if samples is not None:
                found["energy_distance"] = metrics.energy_distance(samples, flat(self.data.test))
                samples = samples[:_KEPT_SAMPLES]
            if self.data.labels is not None:
                found["accuracy"] = metrics.accuracy(*self._features(), *self.data.labels)
        self._note(caught)
        odd = [name for name, measure in found.items() if not measure.finite]
        self.notes += [f"{name} is not a finite number" for name in odd]
        return {name: found[name] for name in found if name not in odd}, samples

    def _likelihoods(self, ais: AIS) -> dict[str, Measure]:
        model, data = self.model, self.data
        binary, X = model.domain == "binary", data.shaped(model, data.test)
        if binary and not data.bits:
            self.notes.append("rows are no bits (see binarize, threshold): no likelihood of them")
            return {}
        found: dict[str, Measure | None] = {}
        if binary:
            found["pseudo_likelihood"] = metrics.pseudo_likelihood(model, X)
        elif model.domain == "real":
            v = data.directions().reshape(-1, *X.shape)
            found["score_matching"] = metrics.score_matching(model, X, v, data.scale)
        try:
            name = "log_probability" if binary else "log_density"
            some = data.shaped(model, data.some)
            found[name] = metrics.log_likelihood(model, X, some, ais, self.seed)
        except (EnergyscapeError, ValueError) as error:
            self.notes.append(f"no likelihood: {error}")
        return {key: value for key, value in found.items() if value is not None}

    def _samples(self, n: int, n_steps: int) -> np.ndarray | None:
        """Flat samples of the model; None, with a note, where it has none."""
        try:
            drawn = to_host(self.model.sample(n, n_steps=n_steps, random_state=self.seed))
        except (EnergyscapeError, ValueError) as error:
            self.notes.append(f"no samples: {error}")
            return None
        drawn = drawn.reshape(n, -1)
        if drawn.shape[1] == self.data.test[0].size and np.isfinite(drawn).all():
            return drawn
        self.notes.append("no samples: they are not finite, or not of the size of the rows")
        return None

    def _features(self) -> tuple[np.ndarray, np.ndarray]:
        """Flat features of training rows and of test rows."""
        model, data = self.model, self.data
        some, test = (model.transform(data.shaped(model, x)) for x in (data.some, data.test))
        return flat(to_host(some)), flat(to_host(test))
