"""A gated Markov random field with binary machines on its activities.

The hidden units of a gated model say where its constraints hold; machines above learn which of them
fail together. Layers are trained one after the other on activities in [0, 1], those of Gamma units
being q = E[h]/γ. On the way down they are drawn at their activities, Gamma units from
Gamma(γ, rate 1/q), and x from its Gaussian given them, whose covariance they have chosen: at the
activities of a row that is a Gibbs step of the lowest model.

Layers of rows are fully connected. Of whole images the lowest is tiled, and machines above see
windows of all maps below (Luo et al., 2013). These are sampled on tori, which every layer divides
by its tile; an image with known pixels lies on one with a margin of unknown ones around it.

References
----------
Ranzato, M., Susskind, J., Mnih, V., Hinton, G. E. (2011). On deep generative models with
applications to recognition.
Luo, H., Carrier, P. L., Courville, A., Bengio, Y. (2013). Texture modeling with convolutional
spike-and-slab RBMs and deep extensions.
"""

from __future__ import annotations

import math
from typing import Any

from sklearn.utils.validation import check_is_fitted

from energyscape.backend import Array, Purpose, draw_seed, namespace, on_device, stream, to_device
from energyscape.errors import CapabilityError
from energyscape.models.gated_base import GatedMRF
from energyscape.models.gated_field import GatedField
from energyscape.models.gated_mrf import MPoT
from energyscape.models.image_face import PIXELS_AT_ONCE, mirrored
from energyscape.models.inputs import as_images
from energyscape.models.rbm import RBM
from energyscape.models.stacks import Stack
from energyscape.models.tiled_rbm import TiledRBM
from energyscape.registry import register
from energyscape.sources import Rows
from energyscape.verbs import check_count

__all__ = ["DeepGatedMRF"]

_PASSES = 1 << 30  # step of the streams that passes up and down draw from


@register
class DeepGatedMRF(Stack):
    """A gated Markov random field, and RBMs one on the activities of the other.

    Parameters
    ----------
    layers : sequence of models, optional
        Bottom first: `PoT`, `CovarianceRBM`, `McRBM` or `MPoT` (not normalised), then RBMs; or, for
        whole images, `TiledMPoT` or `FieldsOfExperts`, then `TiledRBM` layers. Default:
        ``[MPoT(256, n_mean_components=128), RBM(256)]``.
    features : "last", "all" or int, default "last"
        The layer whose activities `transform` gives; "all" puts those of all layers side by side.
    random_state : int, RandomState, Generator or None
        Seeds the layers that have none of their own.

    Attributes
    ----------
    layers_ : list of fitted models
    image_shape_ : tuple
        Of the training images; only there for whole images.
    seed_, n_features_in_ : int

    References
    ----------
    Ranzato, M., Susskind, J., Mnih, V., Hinton, G. E. (2011). On deep generative models with
    applications to recognition.
    """

    image_shape_: tuple[int, ...]

    def default_layers(self) -> list[Any]:
        return [MPoT(256, n_mean_components=128), RBM(256)]

    def fit(self, X: Any, y: Any = None) -> Any:
        for name in ("layers_", "image_shape_"):  # of an earlier fit, maybe of the other kind
            self.__dict__.pop(name, None)
        return super().fit(X, y)

    @property
    def _of_images(self) -> bool:
        """Whether the lowest layer is a field of whole images."""
        layers = self.layers_ if hasattr(self, "layers_") else self._chosen_layers()
        return bool(layers) and hasattr(_model(layers[0]), "takes_images")

    def needed(self) -> tuple[str, ...]:
        own = ("encode",) if self._of_images else super().needed()
        return (*own, "sample_hidden", "sample_visible")

    def _check(self, layers: list[Any]) -> None:
        if layers:
            self._check_kinds([_model(layer) for layer in layers])
        super()._check(layers)

    def _check_kinds(self, models: list[Any]) -> None:
        """Raise where a layer is no model for its place."""
        lowest = type(models[0]).__name__
        if not isinstance(models[0], GatedMRF | GatedField):
            raise CapabilityError(
                f"layer 1 of DeepGatedMRF must be a gated Markov random field, got {lowest}; "
                "DeepBeliefNet takes RBMs at the bottom"
            )
        images = self._of_images
        if len(models) < 2:
            above = "a TiledRBM" if images else "an RBM"
            raise ValueError(f"DeepGatedMRF needs {above} above its {lowest}")
        for i, model in enumerate(models[1:], 2):
            if images:
                fits = isinstance(model, TiledRBM)
                wanted, use = f"of the maps of a {lowest}", "TiledRBM"
            else:
                layered = hasattr(model, "complete") or hasattr(model, "takes_images")
                fits = model.domain == "binary" and not layered
                wanted, use = "of one layer of binary units", "RBM"
            if not fits:
                raise ValueError(
                    f"DeepGatedMRF: layer {i} is a machine {wanted}, got {type(model).__name__}; "
                    f"use {use} there"
                )

    # ------------------------------------------------------------ rows or images

    def read(self, X: Any, reset: bool) -> Rows:
        """Checked rows, or images (n, h, w) or (n, h, w, channels).

        Raises
        ------
        ValueError
            In `fit`, for images into which the windows of some layer do not fit.
        """
        if not self._of_images:
            return super().read(X, reset)
        rows = as_images(self, X, None if reset else self.image_shape_)
        if reset:
            self._check_sides(rows.event_shape[:2])
            self.image_shape_ = rows.event_shape
            self.n_features_in_ = math.prod(rows.event_shape)
        return rows

    def _check_sides(self, sides: tuple[int, ...]) -> None:
        layouts = [_model(layer).layout() for layer in self._chosen_layers()]
        grain = math.prod(layout.grain for layout in layouts)
        top, least = 0, 0
        while not least:  # places at the top, until windows of all layers fit
            top += 1
            side = top
            for layout in reversed(layouts):
                side = side * layout.grain + layout.reach
                if side - layout.reach < layout.size:
                    break
            else:
                least = side
        if any(side < least or (side - least) % grain for side in sides):
            h, w = sides
            raise ValueError(
                f"DeepGatedMRF trains on images whose sides are {least} plus multiples of {grain}, "
                f"so that the windows of all {len(layouts)} layers fit; got {h}×{w}"
            )

    def codes_of(self, layer: Any, X: Any) -> Any:
        """Activities as rows, or as maps."""
        return layer.maps(X) if self._of_images else super().codes_of(layer, X)

    def _widths(self) -> list[int]:
        if not self._of_images:
            return super()._widths()
        sides, widths = self.image_shape_[:2], []
        for layer in self.layers_:
            sides = layer.layout().places(*sides)
            widths.append(math.prod(sides) * int(layer._n_units))
        return widths

    def inverse_transform(self, H: Any) -> Any:
        """Rows from activities of the last layer by means, shape (n, n_features); not of images."""
        self._need_rows("inverse_transform")
        return super().inverse_transform(H)

    def reconstruct(self, X: Any) -> Any:
        """Rows from their own activities at the top, shape (n, n_features); not of images."""
        self._need_rows("reconstruct")
        return super().reconstruct(X)

    def _need_rows(self, what: str) -> None:
        if self._of_images:
            raise CapabilityError(
                f"DeepGatedMRF has no {what} for whole images: places at their edge lie in fewer "
                "windows. Its samples do go down, on tori"
            )

    # ------------------------------------------------------------ samples

    def sample(
        self,
        n_samples: int = 1,
        *,
        shape: tuple[int, int] | None = None,
        n_steps: int = 1000,
        clamp: tuple[Any, Any] | None = None,
        start: Any = None,
        random_state: Any = None,
    ) -> Any:
        """Draw rows or images: chains of the top machine, then down; or ones of which some values
        are known.

        With ``clamp`` every step is a pass up by mean activities, a step of the top machine, a pass
        down, and a draw of the free values given the hidden units and the held values. The pass up
        takes no notice of the machines above, so that this is the usual approximation to the
        conditional of the whole and not exact.

        Parameters
        ----------
        n_samples : int, default 1
        shape : (int, int), optional
            Height and width of images; default: those of the training images.
        n_steps : int, default 1000
            Of the top machine, or of passes where ``clamp`` is given.
        clamp : (mask, values), optional
            Values where ``mask``, bool of shape (n_features,) or (n_samples, n_features), is True
            are held at ``values``, of either shape. Of images of any size (h, w) or
            (n_samples, h, w), with channels if there are any.
        start : array, shape (n_samples, n_features), or of images as ``values``, optional
            Where passes begin; only with ``clamp``. Default: the held values, and elsewhere the
            training rows' means, or the mean of what is known of the image.
        random_state : int, RandomState, Generator or None
            None uses the stack's own: the same call gives the same samples.

        Returns
        -------
        array, shape (n_samples, n_features), or (n_samples, h, w) with channels if there are any
        """
        check_is_fitted(self)
        check_count("n_samples", n_samples)
        seed = self.seed_ if random_state is None else draw_seed(random_state)
        bottom, top = self.layers_[0], self.layers_[-1]
        if shape is not None and (clamp is not None or not self._of_images):
            raise ValueError("shape is that of images none of whose pixels are known; leave it out")
        if clamp is not None:
            check_count("n_steps", n_steps, 0)
            paint = self._painted_images if self._of_images else self._painted_rows
            with on_device(bottom._device):
                return to_device(paint(n_samples, n_steps, clamp, start, seed), bottom._home)
        if start is not None:
            raise ValueError("start is where passes begin that hold values; give clamp as well")
        own: dict[str, Any] = {"n_steps": n_steps, "random_state": seed}
        if not self._of_images:
            v = top.sample(n_samples, **own)
            with on_device(bottom._device):
                rng = stream(seed, Purpose.SAMPLE, _PASSES, bottom._device)
                h = self._down(to_device(v, bottom._device), rng)
                x = bottom.sample_visible(bottom._params, h, rng)
                return to_device(x, bottom._home)
        h, w = self.image_shape_[:2] if shape is None else (int(side) for side in shape)
        below = math.prod(layer.layout().grain for layer in self.layers_[:-1])
        sides = tuple(side // below for side in self._torus(h, w))
        v = top.sample(n_samples, shape=sides, **own)
        with on_device(bottom._device):
            v, parts = to_device(v, bottom._device), []
            rng = stream(seed, Purpose.SAMPLE, _PASSES, bottom._device)
            size = max(1, PIXELS_AT_ONCE // (math.prod(sides) * below**2))
            for lo in range(0, n_samples, size):
                states = bottom.given(bottom._params, self._down(v[lo : lo + size], rng), rng)
                parts.append(bottom.tori(bottom._params, states)[:, :h, :w])
            return to_device(self._shown(namespace(v).concatenate(parts)), bottom._home)

    def _torus(self, h: int, w: int) -> tuple[int, int]:
        """Sides of the smallest torus for images of h × w that windows of all layers go into."""
        grain, least = 1, 1
        for layer in self.layers_:
            layout = layer.layout()
            least = max(least, grain * layout.size)
            grain *= layout.grain
        return tuple(-(-max(side, least) // grain) * grain for side in (h, w))  # type: ignore[return-value]

    def _shown(self, x: Array) -> Array:
        """Images (n, h, w, c) as they came: grey ones without the axis of channels."""
        return x.reshape(*x.shape[:3], *self.image_shape_[2:])

    def _painted_rows(self, n: int, n_steps: int, clamp: Any, start: Any, seed: int) -> Array:
        bottom, d = self.layers_[0], self.n_features_in_
        mask, values = bottom._clamp(clamp, n)
        xp = namespace(values)
        x = xp.zeros((n, d), values.dtype) + bottom._params["mean_v"]
        if start is not None:
            x = bottom._finite(
                bottom._points(start, "start", ((d,), (n, d)), values.dtype), "start"
            )
        x = xp.where(mask, values, x)
        rng = stream(seed, Purpose.SAMPLE, _PASSES + 1, bottom._device)
        return self._repainted(x, ~mask, n_steps, rng).astype(values.dtype, copy=False)

    def _painted_images(self, n: int, n_steps: int, clamp: Any, start: Any, seed: int) -> Array:
        bottom = self.layers_[0]
        known, _, x = bottom._held_images(n, *clamp, start)
        xp, (h, w) = namespace(x), x.shape[1:3]
        margin = bottom.layout().size
        sides = self._torus(h + margin, w + margin)
        pads = [(0, 0), (0, sides[0] - h), (0, sides[1] - w), (0, 0)]
        x = mirrored(x, pads)
        free = xp.ones(x.shape, bool)
        free[:, :h, :w] = ~known
        size, parts = max(1, PIXELS_AT_ONCE // math.prod(x.shape[1:])), []
        for i, lo in enumerate(range(0, n, size)):
            rng = stream(seed, Purpose.SAMPLE, _PASSES + 1 + i, bottom._device)
            rows = slice(lo, lo + size)
            parts.append(self._repainted(x[rows], free[rows], n_steps, rng)[:, :h, :w])
        return self._shown(xp.concatenate(parts))

    # ------------------------------------------------------------ up and down

    def _repainted(self, x: Array, free: Array, n_steps: int, rng: Any) -> Array:
        """Rows or tori after ``n_steps`` passes that draw their ``free`` values."""
        bottom = self.layers_[0]
        draw = bottom.repainted if self._of_images else bottom.sample_visible_free
        for _ in range(n_steps):
            q = x
            for layer in self.layers_[:-1]:
                q = self._seen(layer, q).hidden()
            x = draw(bottom._params, self._down(q, rng), rng, x, free)
        return x

    def _seen(self, layer: Any, x: Array) -> Any:
        """The pass of a layer at rows or tori."""
        params = layer._params
        if self._of_images:
            x = layer.chain_states(params, x)
        return layer.target(params).forward(x)

    def _down(self, v: Array, rng: Any) -> Array:
        """Hidden units of the lowest layer from what the top machine sees: a draw of its own, rates
        given these, their rates further down, and at the lowest layer a draw at these rates."""
        h = self._seen(self.layers_[-1], v).sample_hidden(rng)
        for layer in reversed(self.layers_[1:]):
            way = layer.given if self._of_images else layer.decode
            h = way(layer._params, h)
        bottom = self.layers_[0]
        k, xp = bottom.n_gates, namespace(h)
        levels, g = bottom.units.sample_at(bottom._params, h[..., :k], rng), h[..., k:]
        if not g.shape[-1]:
            return levels
        return xp.concatenate([levels, rng.bernoulli(g)], axis=-1)

    # ------------------------------------------------------------ files

    def file_state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a file holds besides the constructor's arguments."""
        meta, arrays = super().file_state()
        shape = [int(side) for side in self.image_shape_] if self._of_images else None
        return meta | {"image_shape": shape}, arrays

    def set_file_state(self, meta: dict[str, Any], arrays: dict[str, Any]) -> None:
        """Take up what `file_state` gave."""
        super().set_file_state(meta, arrays)
        if meta["image_shape"] is not None:
            self.image_shape_ = tuple(meta["image_shape"])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if self._of_images:
            tags.input_tags.sparse = False
            tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        return tags


def _model(layer: Any) -> Any:
    """What a frozen estimator holds, or the layer itself."""
    return getattr(layer, "estimator", layer)
