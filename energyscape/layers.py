"""Layers of an encoder or decoder: h = f(xW + c), forward and backward.

    a = xW + c,   h = f(a),   da = dh ⊙ f'(a),   dW = x'da,   dc = Σ_i da_i,   dx = da W'

Back-propagation as Rumelhart, Hinton and Williams (1986) have it. Penalties on the code depend on
a, W, c and x directly; `backward_chain` adds their partial derivatives where they belong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from energyscape.activations import (
    Identity,
    Relu,
    SaturatedLinear,
    Shrink,
    Sigmoid,
    SmoothShrink,
    Tanh,
    TopK,
    activation,
    largest,
)
from energyscape.backend import Array

__all__ = [
    "Affine",
    "Identity",
    "LayerGrad",
    "LayerPass",
    "Relu",
    "SaturatedLinear",
    "Shrink",
    "Sigmoid",
    "SmoothShrink",
    "Tanh",
    "TopK",
    "activation",
    "backward_chain",
    "largest",
    "uniform_weights",
]


def uniform_weights(rng: Any, shape: tuple[int, int], dtype: Any) -> Array:
    """Uniform on ±√(6/(units below + units above)) (Glorot and Bengio, 2010)."""
    W = rng.uniform(shape, dtype)
    W -= 0.5
    W *= np.dtype(dtype).type(2 * math.sqrt(6.0 / sum(shape)))
    return W


@dataclass(slots=True)
class Affine:
    """A fitted layer as plain numbers: h = f(xW + c), and back r = g(hV + b).

    Attributes
    ----------
    W, c, activation
        Of the way up.
    V, b, output
        Of the way down.
    """

    W: Array
    c: Array
    activation: Any
    V: Array
    b: Array
    output: Any


@dataclass(slots=True)
class LayerGrad:
    """Derivatives with respect to what a layer is made of; None for 0.

    Attributes
    ----------
    a : array, shape (n, k), or None
        Pre-activations.
    W : array, shape (d, k), or None
    c : array, shape (k,), or None
    x : array, shape (n, d), or None
        The layer's input.
    """

    a: Array = None
    W: Array = None
    c: Array = None
    x: Array = None

    def add(self, other: LayerGrad) -> None:
        """Add the derivatives of ``other``, in place; it may share its arrays afterwards."""
        self.a = _added(self.a, other.a)
        self.W = _added(self.W, other.W)
        self.c = _added(self.c, other.c)
        self.x = _added(self.x, other.x)


def _added(total: Array, more: Array) -> Array:
    if total is None:
        return more
    if more is not None:
        total += more
    return total


class LayerPass:
    """One layer h = f(xW + c) at rows.

    Parameters
    ----------
    x : array, shape (n, d)
    W : array, shape (d, k)
        May be a transposed view (tied decoders): it is never copied.
    c : array, shape (k,)
    activation : activation

    Attributes
    ----------
    x, W, c, activation
        As given.
    a, h : arrays, shape (n, k)
        Pre-activations, and values times the mask; one array where f is the identity.
    mask : array, shape (n, k), or None
        The product of what `keep` was given.
    """

    def __init__(self, x: Array, W: Array, c: Array, activation: Any) -> None:
        self.x, self.W, self.c, self.activation = x, W, c, activation
        self.a = x @ W
        self.a += c
        self.h = activation.value(self.a)
        self.mask: Array = None
        self._slope: Array = None
        self._curvature: Array = None

    def slope(self) -> Array:
        """∂h/∂a, shape (n, k): f'(a) times the mask. Kept: do not write to it."""
        if self._slope is None:
            self._slope = self.activation.slope(self.a, self.h)
        return self._slope

    def curvature(self) -> Array:
        """∂²h/∂a², shape (n, k): f''(a) times the mask. Kept: do not write to it."""
        if self._curvature is None:
            f = self.activation
            h = self.h if self.mask is None else f.value(self.a)
            self._curvature = f.curvature(self.a, h)
            if self.mask is not None:
                self._curvature *= self.mask
        return self._curvature

    def keep(self, mask: Array) -> None:
        """Multiply h and its derivatives by ``mask``, which derivatives see as a constant.

        Parameters
        ----------
        mask : array, shape (n, k), dtype of h
            0 and 1 (k-sparse codes), or 0 and a factor (dropout).
        """
        slope = self.slope()  # before h changes: f' is computed from it
        self._slope = slope * mask
        self.h = self.h * mask  # a new array, because the identity's h is its a
        if self._curvature is not None:
            self._curvature = self._curvature * mask
        self.mask = mask if self.mask is None else self.mask * mask

    def backward(self, dh: Array = None, da: Array = None, need_dx: bool = True) -> LayerGrad:
        """Derivatives of a loss whose derivative is ``dh`` in h and ``da`` in a directly.

        Parameters
        ----------
        dh : array, shape (n, k), optional
            Overwritten: it holds the total derivative in a afterwards.
        da : array, shape (n, k), optional
            At least one of the two is given.
        need_dx : bool, default True
            Whether the product for ``x`` is made.

        Returns
        -------
        LayerGrad
            With W, c and, if asked for, x.
        """
        total = da
        if dh is not None:
            total = dh
            if self.mask is not None or not self.activation.linear:
                total *= self.slope()
            if da is not None:
                total += da
        dx = total @ self.W.T if need_dx else None
        # In the layout of W, so that a tied decoder's gradient adds without strides.
        dW = self.x.T @ total if self.W.flags.c_contiguous else (total.T @ self.x).T
        return LayerGrad(W=dW, c=total.sum(axis=0), x=dx)


def backward_chain(
    passes: Sequence[LayerPass],
    dh: Array,
    extras: Sequence[LayerGrad | None] | None = None,
    need_dx: bool = False,
) -> tuple[list[tuple[Array, Array]], Array]:
    """Back-propagation from the top layer to the bottom.

    Parameters
    ----------
    passes : sequence of LayerPass
        Bottom first; the input of each is the h of the one below.
    dh : array, shape (n, k)
        Derivative of the loss in the h of the top layer; overwritten.
    extras : sequence of LayerGrad or None, optional
        For each layer the direct derivatives (those of a penalty) in its a, W, c and x, which is
        the h of the layer below.
    need_dx : bool, default False
        Whether the derivative in the input of the bottom layer is wanted.

    Returns
    -------
    grads : list of (dW, dc)
        Bottom first.
    dx : array, shape (n, d), or None
    """
    grads: list[Any] = [None] * len(passes)
    for i in reversed(range(len(passes))):
        extra = None if extras is None else extras[i]
        da = None if extra is None else extra.a
        grad = passes[i].backward(dh, da, need_dx=need_dx or i > 0)
        if extra is not None:
            x = extra.x if grad.x is not None else None
            grad.add(LayerGrad(W=extra.W, c=extra.c, x=x))
        grads[i] = grad.W, grad.c
        dh = grad.x
    return grads, dh
