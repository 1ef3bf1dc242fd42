"""Prediction: an encoder learns the codes that inference gives.

    L = ⟨½|h*(x) - f(x)|²⟩_data,    h*(x) = argmin_h of the energy without the encoder

moves the encoder alone, and is how LISTA is taught (Gregor and LeCun, 2010), or the encoder of a
dictionary that was learned before it (Kavukcuoglu et al., 2008, section 2.2).
"""

from __future__ import annotations

from typing import Any

from energyscape.backend import Array, namespace
from energyscape.registry import register
from energyscape.trainers.base import Batch
from energyscape.trainers.energy_loss import EnergyLoss
from energyscape.verbs import Params


@register
class Prediction(EnergyLoss):
    """Gradient descent on the squared error of an encoder's codes; the dictionary stays.

    Exact codes of all rows are inferred once, before the first update, where they fit in
    scikit-learn's ``working_memory`` and there is no ``batch_transform``; else of each batch anew.

    Parameters
    ----------
    n_epochs, batch_size, learning_rate, optimizer, averaging, batch_transform, \
validation_fraction, callbacks
        As for `EnergyLoss`.
    """

    requires = ("init_params", "param_specs", "best_codes", "fixed_codes", "prediction_grad")
    needs_limited = False

    def targets(self, model: Any, params: Params, x: Array) -> Array:
        return model.fixed_codes(params, x)

    def collect(self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any) -> Params:
        x = batch.x
        codes = model.best_codes(params, x).h if batch.y is None else batch.y
        weights = namespace(x).full(len(x), 1.0 / batch.n, x.dtype)
        return model.prediction_grad(params, x, codes, weights)

    def measure(self, model: Any, params: Params, x: Array, y: Array) -> dict[str, Any]:
        """The history's ``prediction``: squared error of a code, beside the energy."""
        codes = model.best_codes(params, x).h if y is None else y
        away = codes - model.guess(params, x)
        error = (away * away).reshape(len(away), -1).sum(axis=1).mean()
        return super().measure(model, params, x, y) | {"prediction": error}
