"""Auto-encoder with several hidden layers.

DeepAutoEncoder (Hinton and Salakhutdinov, 2006)
    h_l = f_l(h_{l-1} W_l + c_l),   r_{l-1} = g_l(r_l V_l + b_l),   h_0 = x,  r_L = h_L
    F(x) = |x - r_0|²  or the cross-entropy
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sklearn.base import clone

from energyscape import io
from energyscape.activations import activation
from energyscape.backend import Purpose, draw_seed, namespace, on_device, stream
from energyscape.layers import Affine
from energyscape.models.encoder_decoder import EncoderDecoder
from energyscape.registry import register
from energyscape.training import TrainState
from energyscape.verbs import check_count, require


@register
class DeepAutoEncoder(EncoderDecoder):
    """Auto-encoder with several hidden layers, the decoder the encoder's mirror.

    Parameters
    ----------
    hidden_layer_sizes : tuple of int, default (256, 64)
        Units of the encoder's layers; the last is the code.
    activation : str, activation, or list of one for each layer, default "sigmoid"
        As for `AutoEncoder`. The mirrored layers have the same.
    decoder_activation : str, activation, or list of them, optional
        Of the decoder's inner layers, one for each hidden layer but the last, lowest first.
        Default: those of the encoder, mirrored.
    loss, output, tied
        As for `AutoEncoder`.
    trainer, random_state, device, verbose
        As for `RBM`; the default trainer is ``Reconstruction()``.

    Attributes
    ----------
    components_ : array, shape (hidden_layer_sizes[0], n_features)
        Weights of the first layer.
    params_ : dict
        ``W1``, ``c1``, ``b1`` (and ``V1`` if not tied), ``W2``, …, and the buffers of
        `AutoEncoder`.
    history_, n_iter_, n_features_in_, seed_, trainer_
        As for `RBM`.

    References
    ----------
    Hinton, G. E., Salakhutdinov, R. (2006). Reducing the dimensionality of data with neural
    networks.

    Examples
    --------
    >>> from energyscape.data import load_digits
    >>> from energyscape.models import DeepAutoEncoder
    >>> from energyscape.trainers import Reconstruction
    >>> X, _ = load_digits()
    >>> DeepAutoEncoder((32, 8), trainer=Reconstruction(n_epochs=2)).fit_transform(X).shape
    (1797, 8)
    """

    _counted = ("c", 0)

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (256, 64),
        *,
        activation: Any = "sigmoid",
        decoder_activation: Any = None,
        loss: str = "squared",
        output: Any = None,
        tied: bool = True,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.decoder_activation = decoder_activation
        self.loss = loss
        self.output = output
        self.tied = tied
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def check_settings(self) -> None:
        if not isinstance(self.hidden_layer_sizes, Sequence) or not self.hidden_layer_sizes:
            raise ValueError(
                "DeepAutoEncoder.hidden_layer_sizes must be a tuple of layer sizes, got "
                f"{self.hidden_layer_sizes!r}"
            )
        for size in self.hidden_layer_sizes:
            check_count("DeepAutoEncoder.hidden_layer_sizes", size)
        layers = len(self.hidden_layer_sizes)
        for name, wanted in (("activation", layers), ("decoder_activation", layers - 1)):
            given = getattr(self, name)
            if isinstance(given, list | tuple) and len(given) != wanted:
                raise ValueError(
                    f"DeepAutoEncoder.{name} has {len(given)} entries; {layers} hidden layers take "
                    f"{wanted}"
                )
        super().check_settings()

    def sizes(self) -> tuple[int, ...]:
        return tuple(self.hidden_layer_sizes)

    def names(self) -> tuple[str, ...]:
        return tuple(str(i + 1) for i in range(len(self.hidden_layer_sizes)))

    def activations(self) -> list[Any]:
        return _for_each(self.activation, len(self.hidden_layer_sizes))

    def outputs(self) -> list[Any]:
        if self.decoder_activation is None:
            return super().outputs()
        inner = _for_each(self.decoder_activation, len(self.hidden_layer_sizes) - 1)
        return [self.output_activation(), *inner]

    def from_layers(self, layers: Sequence[Affine], like: Any, n_rows: int) -> DeepAutoEncoder:
        """This model with the weights of ``layers``, at epoch 0, where the model ``like`` is.

        Parameters
        ----------
        layers : sequence of Affine
            As many as there are hidden layers, with weights down.
        like : fitted model
            That of the lowest layer: says the device and, if it standardises rows, their scale.
        n_rows : int
            Rows that ``like`` was fitted on.

        Returns
        -------
        self
        """
        self.check_settings()
        first, xp, known = layers[0], namespace(layers[0].W), like._params
        params = {"mean": first.output.value(first.b + 0)}
        if self.standardizes:  # the inverse of what `affine_layers` does
            ones = {"scale": xp.ones((), first.b.dtype), "residual": xp.ones_like(first.b)}
            params |= {key: known[key] + 0 if key in known else ones[key] for key in ones}
            scale = params["scale"]
            c, zero = first.c + first.b @ first.W, xp.zeros_like(first.b)
            first = replace(first, W=first.W * scale, c=c, V=first.V / scale, b=zero)
        for name, layer in zip(self.names(), [first, *layers[1:]], strict=True):
            own = {"W": layer.W, "c": layer.c, "b": layer.b}
            own |= {} if self.tied else {"V": layer.V}
            params |= {f"{key}{name}": xp.array(value, order="C") for key, value in own.items()}
        self.n_features_in_ = int(first.W.shape[0])
        if hasattr(like, "feature_names_in_"):
            self.feature_names_in_ = like.feature_names_in_
        self.seed_ = draw_seed(self.random_state)
        self._device, self._home = like._device, like._home
        self._environment = io.environment(self._device)
        trainer = self.default_trainer() if self.trainer is None else clone(self.trainer)
        require(self, trainer)
        trainer.validate(self)
        n_rows -= round(n_rows * trainer.validation_fraction)  # what `resume` will train on
        trainer.settle(n_rows)
        with on_device(self._device):
            rng = stream(self.seed_, Purpose.START, 0, self._device)
            carry = trainer.start(self, params, params["mean"][None], rng)
        self._state, self.trainer_ = TrainState(params, carry, n_rows=n_rows), trainer
        self._forget()
        return self

    @property
    def components_(self) -> Any:
        self._need_fit("components_")
        return self._fitted(self._params["W1"].T)


def _for_each(which: Any, count: int) -> list[Any]:
    """The activations of ``count`` layers, of which one or a list was given."""
    given = which if isinstance(which, list | tuple) else [which] * count
    return [activation(f) for f in given]
