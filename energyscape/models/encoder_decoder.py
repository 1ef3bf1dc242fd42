"""What auto-encoders share: a chain of layers up, a chain down, and the energy between them.

    F(x) = |x - r(x)|²   or   -Σ_i x_i log r_i(x) + (1 - x_i) log(1 - r_i(x)),    r = g(f(x))

The reconstruction error is an energy, but r(x) - x is not its gradient (Kamyshanska and Memisevic,
2015): an `AutoEncoder` offers the potential of r as well, where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from energyscape.activations import activation
from energyscape.backend import Array, namespace
from energyscape.corruptions import SaltAndPepper
from energyscape.errors import CapabilityError, DivergenceError
from energyscape.kernels import softplus_sum
from energyscape.layers import Affine, LayerGrad, LayerPass, backward_chain, uniform_weights
from energyscape.models.base import EnergyModel
from energyscape.models.from_pass import EnergyFromPass
from energyscape.samplers import HMC, DenoisingChain
from energyscape.trainers import Reconstruction
from energyscape.verbs import Param, Params, Pass

LOSSES = ("squared", "cross_entropy")
_RESIDUAL_RATE = 0.01  # of the moving mean of the squared residuals, per update
_FAR = 1e3  # from the data, in units of their scale: a chain that ran away


class EncoderDecoderPass(Pass):
    """The layers' passes up and down, from which energy and gradients follow."""

    def __init__(
        self, model: EncoderDecoder, params: Params, x: Array, up: list[LayerPass] | None = None
    ) -> None:
        super().__init__(model, params, x)
        self.up = model.encoder(params, x) if up is None else up
        self._down: list[LayerPass] | None = None

    def __getitem__(self, rows: slice) -> EncoderDecoderPass:
        return type(self)(self.model, self.params, self.x[rows])

    def join(self, other: Pass) -> EncoderDecoderPass:
        x = namespace(self.x).concatenate([self.x, other.x])
        return type(self)(self.model, self.params, x)

    @property
    def down(self) -> list[LayerPass]:
        """The decoder's passes."""
        if self._down is None:
            self._down = self.model.decoder(self.params, self.up[-1].h)
        return self._down

    def energy(self) -> Array:
        return self.model.row_loss(self.params, self.down[-1], self.up[0].x)

    def grad(self, weights: Array) -> Params:
        da = self.model.loss_slope(self.down[-1], self.up[0].x)
        da *= (weights * self.model.unit(self.params))[:, None]
        return self.model.backward(self.up, self.down, da)[0]

    def input_grad(self) -> Array:
        da = self.model.loss_slope(self.down[-1], self.up[0].x)
        da *= self.model.unit(self.params)
        _, dx = self.model.backward(self.up, self.down, da, need_dx=True)
        if "scale" in self.params:
            dx /= self.params["scale"]
        return dx + self.model.target_slope(self.params, self.down[-1], self.up[0].x)


class EncoderDecoder(EnergyFromPass, EnergyModel):
    """Base of auto-encoders: subclasses name their layers and say how wide they are.

    With a squared loss and a linear output rows are standardised first (each feature's mean, one
    scale for all), so that one learning rate fits data on any scale.
    """

    activation: Any
    output: Any
    loss: str
    tied: bool

    def default_trainer(self) -> Any:
        """Plain reconstruction."""
        return Reconstruction()

    def default_sampler(self) -> Any:
        """The dynamics that the trainer taught (corrupt, reconstruct); else HMC on the energy."""
        trainer = self.default_trainer() if self.trainer is None else self.trainer
        noise = trainer.noise() if hasattr(trainer, "noise") else None
        if noise is None and self.domain == "real" and self.proper:
            return HMC()
        return DenoisingChain(SaltAndPepper() if noise is None else noise)

    # ------------------------------------------------------------ settings

    def sizes(self) -> tuple[int, ...]:
        """Units of each hidden layer, bottom first."""
        raise NotImplementedError

    def names(self) -> tuple[str, ...]:
        """What follows W, c, b and V in the names of each layer's arrays, bottom first."""
        raise NotImplementedError

    def activations(self) -> list[Any]:
        """Of each hidden layer, bottom first."""
        return [activation(self.activation)] * len(self.sizes())

    def output_activation(self) -> Any:
        """Of the reconstruction."""
        if self.output is not None:
            return activation(self.output)
        return activation("sigmoid" if self.loss == "cross_entropy" else "identity")

    def outputs(self) -> list[Any]:
        """Activations of the decoder's layers, bottom first: the mirrored ones."""
        return [self.output_activation(), *self.activations()[:-1]]

    @property
    def standardizes(self) -> bool:
        """Whether rows are standardised before they are encoded."""
        return self.loss == "squared" and self.output_activation().linear

    @property
    def domain(self) -> str:  # type: ignore[override]
        """Unit where reconstructions lie in [0, 1], else real."""
        return "unit" if self.output_activation().codes == "unit" else "real"

    @property
    def codes(self) -> str:  # type: ignore[override]
        """Where codes lie, as the last activation says."""
        return self.activations()[-1].codes

    @property
    def smooth(self) -> bool:  # type: ignore[override]
        """Whether all activations have a curvature everywhere."""
        return all(f.smooth for f in [*self.activations(), *self.outputs()])

    @property
    def nonnegative(self) -> bool:  # type: ignore[override]
        """What a row loses in its reconstruction is."""
        return True

    @property
    def proper(self) -> bool:
        """Whether codes are bounded, so that far rows cannot be reconstructed."""
        return all(f.bounded for f in self.activations())

    def check_settings(self) -> None:
        name = type(self).__name__
        if self.loss not in LOSSES:
            raise ValueError(f"{name}.loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        for f in self.activations():
            f.check()
        out = self.output_activation()
        if self.loss == "cross_entropy" and not out.probabilities:
            raise ValueError(
                f"{name}: loss='cross_entropy' takes reconstructions for probabilities, which a "
                f"{type(out).__name__} output does not give; use output='sigmoid' or loss='squared'"
            )

    # ------------------------------------------------------------ parameters

    def init_params(self, x: Array, rng: Any) -> Params:
        """Uniform weights of Glorot and Bengio (2010), biases 0, output biases at the mean."""
        xp, below, params = namespace(x), x.shape[1], {}
        mean = x.mean(axis=0, dtype=np.float64)
        for name, width in zip(self.names(), self.sizes(), strict=True):
            shapes = {f"W{name}": (below, width)}
            shapes |= {} if self.tied else {f"V{name}": (width, below)}
            for key, shape in shapes.items():
                params[key] = uniform_weights(rng, shape, x.dtype)
            params[f"c{name}"] = xp.zeros(width, x.dtype)
            params[f"b{name}"] = xp.zeros(below, x.dtype)
            below = width
        if self.loss == "cross_entropy":
            p = xp.clip(mean, 0.01, 0.99)
            params[f"b{self.names()[0]}"] = xp.log(p / (1 - p)).astype(x.dtype)
        params["mean"] = mean.astype(x.dtype)
        if self.standardizes:
            spread = ((x - mean) ** 2).mean(dtype=np.float64)
            params["scale"] = xp.sqrt(xp.where(spread > 0, spread, 1.0)).astype(x.dtype)
            params["residual"] = xp.ones(x.shape[1], x.dtype)
        return params

    def param_specs(self) -> dict[str, Param]:
        specs = {}
        for name in self.names():
            specs[f"W{name}"] = Param(decay=True)
            if not self.tied:
                specs[f"V{name}"] = Param(decay=True)
            specs |= {f"c{name}": Param(), f"b{name}": Param()}
        buffers = ("mean", "scale", "residual") if self.standardizes else ("mean",)
        return specs | {name: Param(trainable=False) for name in buffers}

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        below = n_features
        for name, width in zip(self.names(), self.sizes(), strict=True):
            shapes |= {f"W{name}": (below, width), f"c{name}": (width,), f"b{name}": (below,)}
            if not self.tied:
                shapes[f"V{name}"] = (width, below)
            below = width
        shapes["mean"] = (n_features,)
        if self.standardizes:
            shapes |= {"scale": (), "residual": (n_features,)}
        return shapes

    def event_shape(self, params: Params) -> tuple[int, ...]:
        """Shape of one row."""
        return tuple(params["mean"].shape)

    # ------------------------------------------------------------ layers

    def standardized(self, params: Params, x: Array) -> Array:
        """Rows as the first layer takes them."""
        if "scale" not in params:
            return x
        x = x - params["mean"]
        x /= params["scale"]
        return x

    def encoder(self, params: Params, x: Array) -> list[LayerPass]:
        """Passes from rows to code, bottom first."""
        passes, h = [], self.standardized(params, x)
        for name, f in zip(self.names(), self.activations(), strict=True):
            passes.append(LayerPass(h, params[f"W{name}"], params[f"c{name}"], f))
            h = passes[-1].h
        return passes

    def decoder(self, params: Params, h: Array) -> list[LayerPass]:
        """Passes from code to reconstruction (standardised, where rows are), top first."""
        passes, names = [], self.names()
        for name, f in zip(reversed(names), reversed(self.outputs()), strict=True):
            weights = params[f"W{name}"].T if self.tied else params[f"V{name}"]
            passes.append(LayerPass(h, weights, params[f"b{name}"], f))
            h = passes[-1].h
        return passes

    def affine_layers(self, params: Params) -> list[Affine]:
        """The layers with the standardisation worked into the first."""
        layers = []
        for name, f, g in zip(self.names(), self.activations(), self.outputs(), strict=True):
            W = params[f"W{name}"]
            V = W.T if self.tied else params[f"V{name}"]
            layers.append(Affine(W, params[f"c{name}"], f, V, params[f"b{name}"], g))
        if "scale" in params:
            first, scale, mean = layers[0], params["scale"], params["mean"]
            W = first.W / scale
            layers[0] = replace(
                first, W=W, c=first.c - mean @ W, V=first.V * scale, b=first.b * scale + mean
            )
        return layers

    def backward(
        self,
        up: Sequence[LayerPass],
        down: Sequence[LayerPass],
        da: Array,
        extras: Sequence[LayerGrad | None] | None = None,
        need_dx: bool = False,
    ) -> tuple[Params, Array]:
        """Gradient of a loss whose derivative in the last pre-activations is ``da``, which is
        used up, and of penalties on the layers up; the derivative in the standardised rows."""
        top = down[-1].backward(da=da)
        rest, dh = backward_chain(down[:-1], top.x, need_dx=True) if down[1:] else ([], top.x)
        lower, dx = backward_chain(up, dh, extras, need_dx=need_dx)
        grads: Params = {}
        for name, (dW, dc) in zip(self.names(), lower, strict=True):
            grads[f"W{name}"], grads[f"c{name}"] = dW, dc
        for name, (dV, db) in zip(reversed(self.names()), [*rest, (top.W, top.c)], strict=True):
            grads[f"b{name}"] = db
            if self.tied:
                grads[f"W{name}"] += dV.T
            else:
                grads[f"V{name}"] = dV
        return grads, dx

    # ------------------------------------------------------------ the loss, of rows `standardized`

    def row_loss(self, params: Params, out: LayerPass, x: Array) -> Array:
        """Loss of each row for the decoder's last pass, shape (n,), float64."""
        if self.loss == "cross_entropy":
            return softplus_sum(out.a) - (x * out.a).sum(axis=1, dtype=np.float64)
        rest = out.h - x
        total = (rest * rest).sum(axis=1, dtype=np.float64)
        return total * self.unit(params).astype(np.float64) if "scale" in params else total

    def loss_slope(self, out: LayerPass, x: Array) -> Array:
        """∂loss/∂a of the last pre-activations in multiples of `unit`, a new array of shape
        (n, n_features)."""
        slope = out.h - x
        if self.loss == "squared":
            slope *= 2
            if not out.activation.linear:
                slope *= out.slope()
        return slope

    def target_slope(self, params: Params, out: LayerPass, x: Array) -> Array:
        """∂loss/∂(data row) at a fixed reconstruction."""
        if self.loss == "cross_entropy":
            return -out.a
        slope = x - out.h
        slope *= 2 * params["scale"] if "scale" in params else 2
        return slope

    def unit(self, params: Params) -> Any:
        """What energies are multiples of: the square of the rows' scale, or 1."""
        return params["scale"] ** 2 if "scale" in params else 1.0

    # ------------------------------------------------------------ verbs

    def forward(
        self, params: Params, x: Array, beta: Any = 1.0, base: Any = None
    ) -> EncoderDecoderPass:
        """The layers' passes at ``x``, and all that follows from them."""
        if base is not None or np.ndim(beta) or beta != 1.0:
            raise CapabilityError(f"{type(self).__name__} has no tempered pass: β = 1 alone")
        return EncoderDecoderPass(self, params, x)

    def input_grad(self, params: Params, x: Array) -> Array:
        """∂F/∂x, shape (n, n_features)."""
        return self.forward(params, x).input_grad()

    def encode(self, params: Params, x: Array) -> Array:
        """The code, shape (n, n_components)."""
        return self.encoder(params, x)[-1].h

    def decode(self, params: Params, h: Array) -> Array:
        """Reconstruction from a code, shape (n, n_features)."""
        return self._in_data_units(params, self.decoder(params, h)[-1].h)

    def _in_data_units(self, params: Params, z: Array) -> Array:
        if "scale" not in params:
            return z
        z = z * params["scale"]
        z += params["mean"]
        return z

    def regenerate(self, params: Params, x: Array, rng: Any) -> Array:
        """A draw of what the decoder says of rows like ``x``: bits, or the mean and noise.

        The noise has the mean squared residuals of training (per feature). A squared loss with an
        output that is not linear names no distribution: there it is the bare mean.
        """
        return self.redraw(params, self.decoder(params, self.encode(params, x))[-1], rng)

    def redraw(self, params: Params, out: LayerPass, rng: Any) -> Array:
        """The same from the decoder's last pass."""
        if self.loss == "cross_entropy":
            return rng.bernoulli_logit(out.a)
        z = out.h
        if "residual" in params:
            z = z + rng.normal(z.shape, z.dtype) * namespace(z).sqrt(params["residual"])
        return self._in_data_units(params, z)

    def start_points(self, params: Params, n: int, rng: Any) -> Array:
        """Where chains begin: features drawn one by one at the data's mean and scale."""
        xp, mean = namespace(params["mean"]), params["mean"]
        if "scale" not in params and self.domain != "unit":
            return xp.broadcast_to(mean, (n, len(mean))).copy()
        if "scale" not in params:
            return rng.bernoulli(xp.broadcast_to(xp.clip(mean, 0, 1), (n, len(mean))))
        return self._in_data_units(params, rng.normal((n, len(mean)), mean.dtype))

    def _visible_part(self, x: Array) -> Array:
        far = abs(self.standardized(self._params, x))
        if not bool((far < _FAR).all()):  # NaN, too
            raise DivergenceError(
                f"the chains of {type(self).__name__} ran away from the data: its reconstructions "
                "do not contract there. Train it longer, take codes that are bounded "
                "(activation='sigmoid' or 'tanh') or k-sparse, or fewer steps"
            )
        return x

    def project(self, params: Params, sums: Params, rng: Any) -> None:
        """Let the residuals follow those of training."""
        if "mean/residual" in sums:
            residual = params["residual"]
            residual += residual.dtype.type(_RESIDUAL_RATE) * (sums["mean/residual"] - residual)
