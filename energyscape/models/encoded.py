"""Models of a dictionary with an encoder: what is the same however the encoder is taught."""

from __future__ import annotations

from typing import Any

from energyscape.backend import Array, is_gpu_array, namespace
from energyscape.models.encoders import ShrinkEncoder
from energyscape.models.sparse_base import SparseModel
from energyscape.solvers.encode import Codes
from energyscape.solvers.proximal import distance
from energyscape.solvers.quadratic import Gram, Rows, largest_eigenvalue
from energyscape.trainers import EnergyLoss
from energyscape.verbs import Param, Params, as_column

# Numbers of one array of codes at once, on a CPU. An encoder is a product and a few passes over its
# codes: at 144×256 in float32 one forward of 20,000 rows takes 1.6 times as long as in parts that
# stay in the cache, and those 1.02 times as long as the product.
_NUMBERS = 1 << 18


class EncodedModel(SparseModel):
    """A dictionary with an encoder: what both ways of teaching it share."""

    encoder: Any
    exact: bool
    train_dictionary: bool

    def default_trainer(self) -> Any:
        """Gradient descent on the energy of the data."""
        return EnergyLoss(n_epochs=20)

    def chosen_encoder(self) -> Any:
        """The encoder, or the one that None stands for."""
        return ShrinkEncoder() if self.encoder is None else self.encoder

    def check_settings(self) -> None:
        super().check_settings()
        encoder = self.chosen_encoder()
        if not hasattr(encoder, "backward") or isinstance(encoder, type):
            raise ValueError(
                f"{type(self).__name__}.encoder must be an encoder such as TanhEncoder() or "
                f"LISTAEncoder(3), got {encoder!r}"
            )
        encoder.check()

    def init_params(self, x: Array, rng: Any) -> Params:
        """The dictionary's, the encoder's for that dictionary, and the largest eigenvalue of Σxx'/n
        (``power``), in units of which the encoder learns."""
        params = super().init_params(x, rng)
        power = self.steepest(x)
        params["power"] = namespace(x).asarray(power if power > 0 else 1.0, dtype=x.dtype)
        lam = float(params["lam"])
        return params | self.chosen_encoder().init(params["D"], lam, x)

    def steepest(self, x: Array) -> float:
        """The largest eigenvalue of Σxx'/n, or a bound."""
        return largest_eigenvalue(x.T @ x / x.dtype.type(len(x)))

    @property
    def moves_dictionary(self) -> bool:  # type: ignore[override]
        """Whether training moves the dictionary."""
        return self.train_dictionary

    def param_specs(self) -> dict[str, Param]:
        buffers = ("power",) if self.train_dictionary else ("power", "D")
        own = super().param_specs() | {name: Param(trainable=False) for name in buffers}
        return own | self.chosen_encoder().specs()

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        own = super().param_shapes(n_features) | {"power": ()}
        return own | self.chosen_encoder().shapes(n_features, self._atoms(n_features))

    def feasible(self, params: Params) -> Params:
        """A copy with atoms of norm 1, and the encoder within its constraints."""
        return super().feasible(params) | self.chosen_encoder().feasible(params)

    def guess(self, params: Params, x: Array) -> Array:
        """f(x), shape (n, n_components)."""
        encoder, n = self.chosen_encoder(), len(x)
        size = n if is_gpu_array(x) else max(1, _NUMBERS // self.code_numbers(params, x))
        first = encoder.forward(params, x[:size], self.positive)[0]
        if n <= size:
            return first
        h = namespace(x).empty((n, *first.shape[1:]), x.dtype)
        h[:size] = first
        for lo in range(size, n, size):
            part = slice(lo, lo + size)
            h[part] = encoder.forward(params, x[part], self.positive)[0]
        return h

    def code_numbers(self, params: Params, x: Array) -> int:
        """Numbers of the code of one of the rows ``x``."""
        return int(params["D"].shape[1])

    def prediction_grad(self, params: Params, x: Array, h: Array, weights: Array) -> Params:
        """Σ_i w_i ∂/∂θ ½|h_i - f(x_i)|² in the encoder; 0 in the dictionary."""
        encoder = self.chosen_encoder()
        guess, cache = encoder.forward(params, x, self.positive)
        guess = (guess - h) * as_column(weights, h)
        grads, _ = encoder.backward(params, cache, guess)
        grads.pop("D", None)
        if self.train_dictionary:
            grads["D"] = namespace(x).zeros_like(params["D"])
        return grads

    def both(self, own: Params, grads: Params) -> Params:
        """Gradients of the energy at fixed codes and through the encoder, added up; without those
        of a dictionary that stays."""
        if not self.train_dictionary:
            grads.pop("D", None)
        elif "D" in grads:
            grads["D"] += own["D"]
        return own | grads

    def best_codes(self, params: Params, x: Array) -> Codes:
        """Codes of the energy without the encoder, looked for from its guess on."""
        return self.solve_codes(params, x, self.guess(params, x))

    def fixed_codes(self, params: Params, x: Array) -> Array:
        """The same where they do not depend on the encoder, looked for from 0 on; else None."""
        return self.solve_codes(params, x).h

    def encode(self, params: Params, x: Array) -> Array:
        """f(x), or the best code if ``exact``; shape (n, n_components)."""
        return self.infer(params, x).h if self.exact else self.guess(params, x)

    def infer(self, params: Params, x: Array, start: Array = None) -> Codes:
        """The best code of each row, from the encoder's on; its gap, and the iterations it took."""
        guess, alpha = self.guess(params, x), self.pull()
        prediction = guess if alpha else None
        return self.solve_codes(params, x, guess if start is None else start, alpha, prediction)

    def pull(self) -> float:
        """α of inference: how far codes are pulled to f(x)."""
        return 0.0

    def _codes_and_gaps(self, params: Params, x: Array) -> Array:
        if self.exact:
            return super()._codes_and_gaps(params, x)
        xp, guess, alpha = namespace(x), self.guess(params, x), self.pull()
        gram = Gram.of(params["D"], alpha)
        rows = Rows.of(gram, x, guess if alpha else None)
        gap = distance(gram, rows, self.code_penalty(params), guess, self.positive)
        return xp.concatenate([guess, gap[:, None].astype(x.dtype)], axis=1)

    def transform(self, X: Any) -> Any:
        """f(x) of each row, or the best code if ``exact``.

        Parameters
        ----------
        X : array, shape (n, n_features)

        Returns
        -------
        array, shape (n, n_components), container of X, dtype of the fit

        Warns
        -----
        ConvergenceWarning
            If best codes did not reach ``tol``; `dual_gap` says which.
        """
        return super().transform(X) if self.exact else self._map(X, self.guess)

    def precondition(self, params: Params, grads: Params) -> None:
        """Each array in units of the curvature that the energy has in it, in place."""
        super().precondition(params, grads)
        encoder, weight = self.chosen_encoder(), self.weight(params)
        units = encoder.curvature(params)
        for name in encoder.names:
            xp, unit = namespace(grads[name]), units.get(name, 1.0) * weight
            unit = xp.asarray(unit, dtype=grads[name].dtype)
            grads[name] /= xp.where(unit > 0, unit, 1)  # 0 where no code ever was: nor is a slope

    def weight(self, params: Params) -> Any:
        """How curved the energy is in f(x)."""
        return 1.0
