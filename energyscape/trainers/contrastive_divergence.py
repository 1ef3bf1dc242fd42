"""Contrastive divergence and its persistent kin: push down on data, pull up where chains go.

    Δθ ∝ − ⟨∂F/∂θ⟩_data + ⟨∂F/∂θ⟩_chains

each mean over its own count. CD-k (Hinton, 2002) starts the chains at the data for every update;
PCD (Tieleman, 2008; Younes, 1989) lets them run on; FPCD (Tieleman and Hinton, 2009) runs them on
θ + θ_fast, an overlay that learns quickly and decays quickly and so drives them apart.
Gibbs chains are kept as hidden states, so that an update costs five matrix products at one step;
any other sampler keeps what it needs, and its adapters follow the model for as long as it learns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.errors import CapabilityError
from energyscape.optim import Moment, Optimizer
from energyscape.registry import register
from energyscape.samplers.base import Chains, Sampler, complain, need_unit_temperature
from energyscape.trainers.base import Batch, Contrast, at_coordinates, contrast_weights
from energyscape.verbs import Params, Pass, check_count, speaks


class _ChainContrast(Contrast):
    """What CD and PCD share: their constructor, its checks, and moves by any sampler."""

    requires = (*Contrast.requires, "free_energy_grad", "sample_visible|input_grad")
    needs_proper = True

    def __init__(
        self,
        n_steps: int = 1,
        n_chains: int | None = None,
        sampler: Any = None,
        n_epochs: int | None = None,
        batch_size: int = 100,
        learning_rate: float | None = None,
        optimizer: Optimizer | None = None,
        averaging: float | None = None,
        batch_transform: Any = None,
        validation_fraction: float = 0.0,
        callbacks: Sequence[Callable[..., Any]] = (),
    ) -> None:
        self.n_steps = n_steps
        self.n_chains = n_chains
        self.sampler = sampler
        self.n_epochs = n_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.averaging = averaging
        self.batch_transform = batch_transform
        self.validation_fraction = validation_fraction
        self.callbacks = callbacks

    def validate(self, model: Any) -> None:
        super().validate(model)
        for key, value in (("n_steps", self.n_steps), ("n_chains", self.n_chains)):
            if value is None and key == "n_chains":
                continue
            check_count(f"{type(self).__name__}.{key}", value)
        if self.sampler is not None and not isinstance(self.sampler, Sampler):
            raise ValueError(
                f"{type(self).__name__}.sampler must be a sampler, got {self.sampler!r}"
            )
        kernel = self._kernel(model)
        kernel.validate()
        need_unit_temperature(kernel, f"the likelihood that {type(self).__name__} climbs")
        for adapter in kernel.adapters(persistent=True):
            if not adapter.follows:
                raise ValueError(
                    f"{type(adapter).__name__} adapts within a warm-up, and {type(self).__name__} "
                    "has none: use Multiplicative, which follows a model that learns"
                )
        why = kernel.obstacle(model.target({}))
        if why is None and not kernel.follows_energy:
            why = "its chains follow what was learned and not the energy"
        if why is not None:
            raise CapabilityError(
                f"{type(self).__name__} cannot train {type(model).__name__} with "
                f"{type(kernel).__name__}: {why}"
            )

    def _kernel(self, model: Any) -> Any:
        """What moves the chains."""
        return model.default_sampler() if self.sampler is None else self.sampler

    def _target(self, kernel: Any, model: Any, params: Params) -> Any:
        tempered = kernel.tempers and not speaks(model, ("base_measure",))
        return model.target(params, model.base_measure(params) if tempered else None)

    def settings(self, model: Any) -> tuple[str, ...]:
        return tuple(f"sampler/{key}" for key in self._kernel(model).settings())

    def _begin(self, model: Any, params: Params, x: Array, rng: Any) -> Chains:
        """Checked chains at ``x``, with what will adapt them."""
        kernel = self._kernel(model)
        target = self._target(kernel, model, params)
        x = _started(model, params, x, rng)
        kernel.check(target, x)
        chains = kernel.start(target, x, rng)
        for adapter in kernel.adapters(persistent=True):
            adapter.start(chains, 0)
        return chains

    def _advance(self, model: Any, params: Params, chains: Chains, rng: Any) -> None:
        """``n_steps`` of every chain at ``params``; the adapters look on."""
        kernel = self._kernel(model)
        target = self._target(kernel, model, params)
        for _ in range(self.n_steps):
            info = kernel.step(target, chains, rng)
            for adapter in kernel.adapters(persistent=True):
                adapter.update(chains, info)

    def lost(self, model: Any, carry: Params) -> str | None:
        """Chains that no longer move, so that nothing holds the energy up."""
        found = (adapter.lost(chains) for adapter, chains in self._adapted(model, carry))
        return next((why for why in found if why is not None), None)

    def report(self, model: Any, params: Params, carry: Params, rng: Any) -> dict[str, Any]:
        for adapter, chains in self._adapted(model, carry):
            complain([adapter], chains)
        step = carry.get("sampler/step_size")
        return {} if step is None else {"chain_step_size": step.mean()}

    def _adapted(self, model: Any, carry: Params) -> list[tuple[Any, Chains]]:
        """Adapters, each with the chains that it adapts."""
        if "sampler/step_size" not in carry:
            return []
        chains = Chains.of({"chain/x": carry["sampler/step_size"]} | carry)
        return [(adapter, chains) for adapter in self._kernel(model).adapters(persistent=True)]


@register
class CD(_ChainContrast):
    """Contrastive divergence: chains of ``n_steps`` Gibbs steps from the rows of each batch.

    Quick and steady, good features; the likelihood suffers because the energy is pulled up only
    near the data.

    Parameters
    ----------
    n_steps : int, default 1
        k of CD-k.
    n_chains : int, optional
        Negative rows per update, started at the batch's rows in turn. Default: one per row.
    sampler : sampler, optional
        What moves the chains: `HMC`, `ParallelTempering`, …; default: the model's own.
    n_epochs : int, optional
        Default: as many as make 10,000 updates, at least 10 and at most 1000.
    batch_size : int, default 100
    learning_rate : float, optional
        Shorthand for ``optimizer=SGD(learning_rate)``; default 0.1.
    optimizer : Optimizer, optional
    averaging : float in (0, 1], optional
        Show the running average of the parameters over about the last ``averaging`` of all
        updates, instead of the last ones.
    batch_transform : transform, optional
        Applied to each batch with fresh random numbers, e.g. `Binarize()`.
    validation_fraction : float in [0, 1), default 0
        Rows set apart (by index) for ``energy_valid`` in the history.
    callbacks : sequence of callables, default ()
        ``callback(model, state, info)`` after each epoch; True stops the training.

    References
    ----------
    Hinton, G. E. (2002). Training products of experts by minimizing contrastive divergence.
    """

    def points(
        self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any
    ) -> tuple[Pass, Array]:
        rows = len(batch.x)
        # Each worker has its share of the chains, and each chain the weight of those rows.
        share = rows / batch.n
        chains = rows if self.n_chains is None else max(1, round(self.n_chains * share))
        if not self._kernel(model).needs_sweep:
            return self._by_sampler(model, params, carry, batch, chains, rng)
        data = model.forward(params, batch.x)
        moved = data if chains == rows else _cycled(model, params, batch.x, chains)
        passed = data.join(self._swept(model, params, moved, rng))
        return passed, contrast_weights(passed.x, batch.n, chains / share, rows)

    def moved(self, model: Any, params: Params, carry: Params, x: Array, rng: Any) -> Array:
        """Where a chain from every row of ``x`` is after ``n_steps``."""
        if not self._kernel(model).needs_sweep:
            return self._moved_by_sampler(model, params, carry, x, rng)
        return self._swept(model, params, model.forward(params, x), rng).x

    def _swept(self, model: Any, params: Params, passed: Pass, rng: Any) -> Pass:
        for _ in range(self.n_steps):
            h = passed.sample_hidden(rng)
            passed = model.forward(params, _visible(model, params, h, rng))
        return passed

    def start(self, model: Any, params: Params, x: Array, rng: Any) -> Params:
        carry = super().start(model, params, x, rng)
        if self._kernel(model).needs_sweep:
            return carry
        rows = x[: min(len(x), max(self.batch_size, 2))]
        shared = self._begin(model, params, rows, rng).shared
        return carry | {f"sampler/{key}": value for key, value in shared.items()}

    def _by_sampler(
        self, model: Any, params: Params, carry: Params, batch: Batch, n: int, rng: Any
    ) -> tuple[Pass, Array]:
        params = model.prepared(params)
        moved = self._moved_by_sampler(model, params, carry, _in_turn(batch.x, n), rng)
        data = _completed(model, params, batch.x)
        passed = model.forward(params, namespace(data).concatenate([data, moved]))
        return passed, contrast_weights(passed.x, batch.n, n * batch.n / len(data), len(data))

    def _moved_by_sampler(
        self, model: Any, params: Params, carry: Params, x: Array, rng: Any
    ) -> Array:
        """Chains anew from the rows; step size and the like are carried on."""
        chains = Chains.of(carry | {"chain/x": _started(model, params, x, rng)})
        self._kernel(model).restart(chains, rng)
        self._advance(model, params, chains, rng)
        carry |= {f"sampler/{key}": value for key, value in chains.shared.items()}
        return _as_rows(model, params, chains.x)


@register
class PCD(_ChainContrast):
    """Persistent contrastive divergence (stochastic maximum likelihood): the chains run on.

    The best likelihood of the family. The learning rate must fall (it does by default), because
    at a constant rate the chains never settle.

    Parameters
    ----------
    n_steps : int, default 1
        Steps of every chain per update.
    n_chains : int, optional
        Chains, whatever the batch size. Default: max(batch_size, 100).
    sampler, n_epochs, batch_size, learning_rate, optimizer, averaging, batch_transform, \
validation_fraction, callbacks
        As for `CD`.

    References
    ----------
    Tieleman, T. (2008). Training RBMs using approximations to the likelihood gradient.
    Younes, L. (1989). Parametric inference for imperfectly observed Gibbsian fields.
    """

    def start(self, model: Any, params: Params, x: Array, rng: Any) -> Params:
        chains = max(self.batch_size, 100) if self.n_chains is None else self.n_chains
        carry = super().start(model, params, x, rng)
        if self._kernel(model).needs_sweep:
            return carry | {"chain/h": _cycled(model, params, x, chains).sample_hidden(rng)}
        return carry | self._begin(model, params, _in_turn(x, chains), rng).carry()

    def points(
        self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any
    ) -> tuple[Pass, Array]:
        params = model.prepared(params)
        v = self._move(model, params, carry, rng)
        x = _completed(model, params, batch.x)
        rows, xp = len(x), namespace(x)
        passed = model.forward(params, xp.concatenate([x, v]))
        if "chain/h" in carry:
            carry["chain/h"] = passed[rows:].sample_hidden(rng)
        return passed, contrast_weights(passed.x, batch.n, batch.chains or len(v), rows)

    def _move(self, model: Any, params: Params, carry: Params, rng: Any) -> Array:
        """The chains' visible states after ``n_steps``; a last h comes with the gradient."""
        if "chain/h" not in carry:
            chains = Chains.of(carry)
            self._advance(model, params, chains, rng)
            carry |= chains.carry()
            return _as_rows(model, params, chains.x)
        h = carry["chain/h"]
        v = _visible(model, params, h, rng)
        for _ in range(self.n_steps - 1):
            h = model.forward(params, v).sample_hidden(rng)
            v = _visible(model, params, h, rng)
        return v

    def report(self, model: Any, params: Params, carry: Params, rng: Any) -> dict[str, Any]:
        if "chain/h" in carry:
            v = _visible(model, params, carry["chain/h"], rng)
        else:
            v = _as_rows(model, params, carry["chain/x"])
        xp = namespace(v)
        return super().report(model, params, carry, rng) | {
            "chain_energy": model.free_energy(params, v).mean(),
            "chain_spread": xp.sqrt(v.var(axis=0, dtype=np.float64).mean()),
        }


@register
class FPCD(PCD):
    """Persistent contrastive divergence with fast weights: chains that mix while they learn.

    The chains move on θ + θ_fast, with θ_fast ← fast_decay · θ_fast + fast step; the model is θ
    alone. It helps where PCD's chains stick: high rates, few chains, few updates.

    Parameters
    ----------
    n_steps, n_chains, sampler, n_epochs, batch_size, learning_rate, optimizer, averaging, \
batch_transform, validation_fraction, callbacks
        As for `PCD`.
    fast_learning_rate : float, default 0.05
        Constant rate of the overlay, > 0, times the relative rate of each parameter.
    fast_decay : float, default 0.95
        Fraction of the overlay that an update keeps, in [0, 1).

    References
    ----------
    Tieleman, T., Hinton, G. E. (2009). Using fast weights to improve persistent contrastive
    divergence.
    """

    def __init__(
        self,
        n_steps: int = 1,
        n_chains: int | None = None,
        sampler: Any = None,
        n_epochs: int | None = None,
        batch_size: int = 100,
        learning_rate: float | None = None,
        optimizer: Optimizer | None = None,
        averaging: float | None = None,
        batch_transform: Any = None,
        validation_fraction: float = 0.0,
        callbacks: Sequence[Callable[..., Any]] = (),
        fast_learning_rate: float = 0.05,
        fast_decay: float = 0.95,
    ) -> None:
        super().__init__(
            n_steps=n_steps,
            n_chains=n_chains,
            sampler=sampler,
            n_epochs=n_epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            optimizer=optimizer,
            averaging=averaging,
            batch_transform=batch_transform,
            validation_fraction=validation_fraction,
            callbacks=callbacks,
        )
        self.fast_learning_rate = fast_learning_rate
        self.fast_decay = fast_decay

    def validate(self, model: Any) -> None:
        super().validate(model)
        if not self.fast_learning_rate > 0:
            raise ValueError(
                f"FPCD.fast_learning_rate must be > 0, got {self.fast_learning_rate!r}"
            )
        if not 0 <= self.fast_decay < 1:
            raise ValueError(f"FPCD.fast_decay must be in [0, 1), got {self.fast_decay!r}")

    def start(self, model: Any, params: Params, x: Array, rng: Any) -> Params:
        fast = {
            f"fast/{key}": namespace(params[key]).zeros_like(params[key])
            for key, spec in model.param_specs().items()
            if spec.trainable
        }
        return super().start(model, params, x, rng) | fast

    def points(
        self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any
    ) -> tuple[Pass, Array]:
        overlaid = _overlaid(model, params, carry)
        v = self._move(model, overlaid, carry, rng)
        if "chain/h" in carry:
            carry["chain/h"] = model.forward(overlaid, v).sample_hidden(rng)
        x = _completed(model, params, batch.x)
        rows, xp = len(x), namespace(x)
        # The gradient is that of F at the points, under the model's own parameters.
        passed = model.forward(params, xp.concatenate([x, v]))
        return passed, contrast_weights(passed.x, batch.n, batch.chains or len(v), rows)

    def _descend(self, model: Any, moved: Params, carry: Params, sums: Params, at: Moment) -> None:
        shares = self.resolved_optimizer().shares(model.param_specs(), at)
        for key, share in shares.items():
            fast = carry[f"fast/{key}"]
            fast *= fast.dtype.type(self.fast_decay)
            fast -= fast.dtype.type(self.fast_learning_rate * share) * sums[key]
        super()._descend(model, moved, carry, sums, at)


def _in_turn(x: Array, n: int) -> Array:
    """``n`` rows, taken from ``x`` in turn."""
    return x[namespace(x).arange(n) % len(x)]


def _cycled(model: Any, params: Params, x: Array, n: int) -> Pass:
    """The pass at ``n`` rows taken from ``x`` in turn."""
    return model.forward(params, _in_turn(x, n))


def _completed(model: Any, params: Params, x: Array, rng: Any = None) -> Array:
    """Rows with what chains move besides: the model's means of it, or draws where they start."""
    return x if speaks(model, ("complete",)) else model.complete(params, x, rng)


def _started(model: Any, params: Params, x: Array, rng: Any) -> Array:
    """States of chains that begin at rows ``x``."""
    x = _completed(model, params, x, rng)
    return x if speaks(model, ("to_chains",)) else model.to_chains(params, x)


def _as_rows(model: Any, params: Params, states: Array) -> Array:
    """States of chains as rows like those of the data."""
    return states if speaks(model, ("from_chains",)) else model.from_chains(params, states)


def _visible(model: Any, params: Params, h: Array, rng: Any) -> Array:
    """Rows given hidden units."""
    return _as_rows(model, params, model.sample_visible(params, h, rng))


def _overlaid(model: Any, params: Params, carry: Params) -> Params:
    """θ + θ_fast, added where steps are taken, within the model's constraints."""
    moved = model.coordinates(params)
    for key, value in moved.items():
        if f"fast/{key}" in carry:
            moved[key] = value + carry[f"fast/{key}"]
    return at_coordinates(model, moved)
