"""A gated Markov random field with binary machines on its activities.

The hidden units of a gated model say where its constraints hold; machines above learn which of them
fail together. Layers are trained one after the other on activities in [0, 1], those of Gamma units
being E[h]/γ. On the way down an activity q of a Gamma unit stands for h = γq, the mean units are
drawn, and x is drawn from its Gaussian given them, whose covariance they have chosen.

References
----------
Ranzato, M., Susskind, J., Mnih, V., Hinton, G. E. (2011). On deep generative models with
applications to recognition.
"""

from __future__ import annotations

from typing import Any

from sklearn.utils.validation import check_is_fitted

from energyscape.backend import Array, Purpose, draw_seed, namespace, on_device, stream, to_device
from energyscape.errors import CapabilityError
from energyscape.models.gated_base import GatedMRF
from energyscape.models.gated_mrf import MPoT
from energyscape.models.rbm import RBM
from energyscape.models.stacks import Stack
from energyscape.registry import register
from energyscape.verbs import check_count

__all__ = ["DeepGatedMRF"]

_PASSES = 1 << 30  # step of the streams that passes up and down draw from


@register
class DeepGatedMRF(Stack):
    """A gated Markov random field, and RBMs one on the activities of the other.

    Parameters
    ----------
    layers : sequence of models, optional
        Bottom first: `PoT`, `CovarianceRBM`, `McRBM` or `MPoT` (not normalised), then RBMs.
        Default: ``[MPoT(256, n_mean_components=128), RBM(256)]``.
    features : "last", "all" or int, default "last"
        The layer whose activities `transform` gives; "all" puts those of all layers side by side.
    random_state : int, RandomState, Generator or None
        Seeds the layers that have none of their own.

    Attributes
    ----------
    layers_ : list of fitted models
    seed_, n_features_in_ : int

    References
    ----------
    Ranzato, M., Susskind, J., Mnih, V., Hinton, G. E. (2011). On deep generative models with
    applications to recognition.
    """

    def default_layers(self) -> list[Any]:
        return [MPoT(256, n_mean_components=128), RBM(256)]

    def needed(self) -> tuple[str, ...]:
        return (*super().needed(), "sample_hidden", "sample_visible")

    def _check(self, layers: list[Any]) -> None:
        super()._check(layers)
        models = [getattr(layer, "estimator", layer) for layer in layers]  # frozen ones are inside
        lowest = type(models[0]).__name__
        if not isinstance(models[0], GatedMRF):
            raise CapabilityError(
                f"layer 1 of DeepGatedMRF must be a gated Markov random field, got {lowest}; "
                "DeepBeliefNet takes RBMs at the bottom"
            )
        if len(models) < 2:
            raise ValueError(f"DeepGatedMRF needs an RBM above its {lowest}")
        for i, model in enumerate(models[1:], 2):
            if model.domain != "binary" or hasattr(model, "complete"):
                raise ValueError(
                    f"DeepGatedMRF: layer {i} is a machine of one layer of binary units, got "
                    f"{type(model).__name__}; use RBM there"
                )

    def sample(
        self,
        n_samples: int = 1,
        *,
        n_steps: int = 1000,
        clamp: tuple[Any, Any] | None = None,
        start: Any = None,
        random_state: Any = None,
    ) -> Any:
        """Draw rows: chains of the top machine, then down; or rows some of whose values are known.

        With ``clamp`` every step is a pass up by mean activities, a step of the top machine, a pass
        down, and a draw of the free values given the hidden units and the held values. The pass up
        takes no notice of the machines above, so that this is the usual approximation to the
        conditional of the whole and not exact.

        Parameters
        ----------
        n_samples : int, default 1
        n_steps : int, default 1000
            Of the top machine, or of passes where ``clamp`` is given.
        clamp : (mask, values), optional
            Values where ``mask``, bool of shape (n_features,) or (n_samples, n_features), is True
            are held at ``values``, of either shape.
        start : array, shape (n_samples, n_features), optional
            Where passes begin; only with ``clamp``. Default: the held values, and the training
            rows' means elsewhere.
        random_state : int, RandomState, Generator or None
            None uses the stack's own: the same call gives the same samples.

        Returns
        -------
        array, shape (n_samples, n_features)
        """
        check_is_fitted(self)
        check_count("n_samples", n_samples)
        seed = self.seed_ if random_state is None else draw_seed(random_state)
        bottom, top = self.layers_[0], self.layers_[-1]
        if clamp is not None:
            check_count("n_steps", n_steps, 0)
            return self._painted(n_samples, n_steps, clamp, start, seed)
        if start is not None:
            raise ValueError("start is where passes begin that hold values; give clamp as well")
        v = top.sample(n_samples, n_steps=n_steps, random_state=seed)
        with on_device(bottom._device):
            rng = stream(seed, Purpose.SAMPLE, _PASSES, bottom._device)
            h = top.sample_hidden(top._params, to_device(v, bottom._device), rng)
            h = self._units(self._down(h), rng)
            return to_device(bottom.sample_visible(bottom._params, h, rng), bottom._home)

    def _painted(self, n: int, n_steps: int, clamp: tuple[Any, Any], start: Any, seed: int) -> Any:
        bottom, top = self.layers_[0], self.layers_[-1]
        with on_device(bottom._device):
            mask, values = bottom._clamp(clamp, n)
            xp, params, d = namespace(values), bottom._params, self.n_features_in_
            x = xp.zeros((n, d), values.dtype) + params["mean_v"]
            if start is not None:
                x = bottom._finite(
                    bottom._points(start, "start", ((d,), (n, d)), values.dtype), "start"
                )
            x = xp.where(mask, values, x)
            for step in range(n_steps):
                rng = stream(seed, Purpose.SAMPLE, _PASSES + 1 + step, bottom._device)
                q = x
                for layer in self.layers_[:-1]:
                    q = layer.encode(layer._params, q)
                h = self._units(self._down(top.sample_hidden(top._params, q, rng)), rng)
                x = bottom.sample_visible_free(params, h, rng, x, ~mask)
            return to_device(x.astype(values.dtype, copy=False), bottom._home)

    def _down(self, h: Array) -> Array:
        """Activities of the lowest layer given the top machine's hidden units, by means."""
        for layer in reversed(self.layers_[1:]):
            h = layer.decode(layer._params, h)
        return h

    def _units(self, q: Array, rng: Any) -> Array:
        """Hidden units of the lowest layer: Gamma units at γq, others drawn."""
        bottom, k = self.layers_[0], self.layers_[0]._n_units
        xp, levels = namespace(q), q[:, :k]
        if bottom.latents == "binary":
            levels = rng.bernoulli(levels)
        else:
            levels = bottom.units.from_activity(bottom._params, levels)
        g = rng.bernoulli(q[:, k:]) if q.shape[1] > k else q[:, k:]
        return xp.concatenate([levels.astype(q.dtype), g.astype(q.dtype)], axis=1)
