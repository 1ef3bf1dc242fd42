"""Laws that every model's verbs obey, as functions: the library's tests and `check_model` run them.

Each law takes a model, parameters and rows in float64 and raises AssertionError with the numbers
that break it. Parameters come read-only, so that a verb which writes to its arguments is caught by
the write itself. Tolerances: central differences of step h have error h² in truncation and ε/h in
rounding; with h = 1e-5 and values of order 1 to 100 that is below 1e-6 relative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from energyscape.backend import Purpose, stream
from energyscape.verbs import Params, speaks

_STEP = 1e-5
_DIFFERENCE_TOLERANCE = 1e-6
# Of second derivatives, where the step is not small beside the narrowest of a few Gaussians.
_CURVED = 1e-5
_EXACT = 1e-10
_MAX_ENUMERATED = 12


def check_model(model: Any, X: Any, random_state: int = 0) -> list[str]:
    """Run every law that applies to ``model`` on small data.

    Parameters
    ----------
    model : model instance (fitted or not; only its verbs are used)
    X : array, shape (n, *event_shape)
        A few typical rows; 20 rows of 10 features are plenty, and cost is quadratic in both.
    random_state : int, default 0

    Returns
    -------
    list of str
        Names of the laws that were checked; a law is left out where the model lacks its verbs or
        is too large to enumerate.

    Raises
    ------
    AssertionError
        Naming the law that is broken, with the numbers.

    Examples
    --------
    >>> import energyscape, numpy as np
    >>> from energyscape.models import RBM
    >>> X = np.random.default_rng(0).integers(0, 2, (8, 6)).astype(float)
    >>> "energy_is_free_energy" in energyscape.check_model(RBM(4), X)
    True
    """
    x = np.asarray(X, np.float64)
    params = generic_params(model, x, random_state)
    if not speaks(model, ("complete",)):
        x = model.complete(params, x)
    checked = []
    for law, needed in LAWS.items():
        if speaks(model, needed):
            continue
        try:
            applied = law(model, params, x, np.random.default_rng(random_state))
        except AssertionError as error:
            raise AssertionError(f"{type(model).__name__} breaks {law.__name__}: {error}") from None
        if applied is not False:
            checked.append(law.__name__)
    return checked


def generic_params(model: Any, x: np.ndarray, seed: int = 0, noise: float = 0.3) -> Params:
    """Parameters off the symmetric start, feasible, and read-only."""
    rng = np.random.default_rng(seed)
    params = model.init_params(x, stream(seed, Purpose.INIT))
    for name, spec in model.param_specs().items():
        if spec.trainable:
            value = params[name]
            scale = noise * max(1.0, float(np.abs(value).mean()))
            params[name] = value + scale * rng.standard_normal(value.shape)
    return _frozen(model.feasible(params))


def _frozen(params: Params) -> Params:
    frozen = {k: np.array(v) for k, v in params.items()}
    for value in frozen.values():
        value.flags.writeable = False
    return frozen


def _close(got: Any, wanted: Any, tolerance: float, what: str) -> None:
    """|got - wanted| within ``tolerance`` of the largest value wanted."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert got.shape == wanted.shape, f"{what} has shape {got.shape}, wanted {wanted.shape}"
    scale = max(1.0, float(np.abs(wanted).max(initial=0.0)))
    error = float(np.abs(got - wanted).max(initial=0.0)) / scale
    assert error <= tolerance, f"{what} is off by {error:.2e} relative, allowed {tolerance:.0e}"


def _weights(n: int, rng: Any) -> np.ndarray:
    return rng.standard_normal(n)


# ---------------------------------------------------------------- energies and gradients


def energy_is_free_energy(model: Any, params: Params, x: np.ndarray, rng: Any) -> None:
    """The pass and the plain verb give one F, float64, row by row, in float32 models too."""
    energy = model.free_energy(params, x)
    assert energy.dtype == np.float64, f"free_energy has dtype {energy.dtype}, wanted float64"
    assert energy.shape == (len(x),), f"free_energy has shape {energy.shape}"
    _close(model.forward(params, x).energy(), energy, _EXACT, "forward().energy()")
    rows = np.concatenate([model.free_energy(params, x[i : i + 1]) for i in range(len(x))])
    _close(rows, energy, _EXACT, "free_energy of single rows")
    narrow = {k: v.astype(np.float32) for k, v in params.items()}
    single = model.free_energy(narrow, x.astype(np.float32))
    assert single.dtype == np.float64, f"float32 energies have dtype {single.dtype}, not float64"
    # Rounding of the inputs alone moves F by about 1e-7 |F|·√(terms).
    _close(single, energy, 1e-4, "free_energy in float32")


def gradient_is_central_difference(model: Any, params: Params, x: np.ndarray, rng: Any) -> None:
    """Σ w ∂F/∂θ for signed weights, every trainable entry (at most 200 a parameter)."""
    w = _weights(len(x), rng)
    grads = model.free_energy_grad(params, x, w)
    trainable = [k for k, spec in model.param_specs().items() if spec.trainable]
    assert set(trainable) <= set(grads), f"free_energy_grad lacks {set(trainable) - set(grads)}"
    for name in trainable:
        value = params[name]
        picks = rng.permutation(value.size)[:200]
        wanted = []
        for flat in picks:
            h = _STEP * max(1.0, abs(value.flat[flat]))
            sides = []
            for sign in (1, -1):
                moved = np.array(value)
                moved.flat[flat] += sign * h
                sides.append(w @ model.free_energy(params | {name: moved}, x))
            wanted.append((sides[0] - sides[1]) / (2 * h))
        _close(np.ravel(grads[name])[picks], wanted, _DIFFERENCE_TOLERANCE, f"∂F/∂{name}")


def gradient_is_additive(model: Any, params: Params, x: np.ndarray, rng: Any) -> None:
    """Linear in the weights, additive over rows, the same from the pass, close in float32."""
    w, half = _weights(len(x), rng), len(x) // 2
    whole = model.free_energy_grad(params, x, w)
    passed = model.forward(params, x)
    from_pass = passed.grad(w)
    again = passed.grad(2 * w)
    parts = [
        model.free_energy_grad(params, x[rows], w[rows])
        for rows in (slice(None, half), slice(half, None))
    ]
    joined = passed[:half].join(passed[half:]).grad(w)
    narrow = {k: v.astype(np.float32) for k, v in params.items()}
    single = model.free_energy_grad(narrow, x.astype(np.float32), w.astype(np.float32))
    for name, wanted in whole.items():
        _close(from_pass[name], wanted, _EXACT, f"forward().grad() of {name}")
        _close(again[name], 2 * wanted, _EXACT, f"gradient of {name} at doubled weights")
        _close(parts[0][name] + parts[1][name], wanted, _EXACT, f"gradient of {name} over halves")
        _close(joined[name], wanted, _EXACT, f"gradient of {name} of joined passes")
        assert single[name].dtype == np.float32, f"float32 ∂F/∂{name} is {single[name].dtype}"
        _close(single[name], wanted, 1e-4, f"gradient of {name} in float32")


def input_gradient_is_central_difference(
    model: Any, params: Params, x: np.ndarray, rng: Any
) -> None:
    """∂F/∂x along every coordinate; at β < 1, row by row, and on the path from a base measure where
    there is one."""
    plain = model.input_grad(params, x)
    _close(
        plain, _slopes(lambda y: model.free_energy(params, y), x), _DIFFERENCE_TOLERANCE, "∂F/∂x"
    )
    _close(model.forward(params, x).input_grad(), plain, _EXACT, "forward().input_grad()")
    if not speaks(model, ("input_grad_function",)):
        _close(model.input_grad_function(params)(x), plain, _EXACT, "input_grad_function()")
    if not speaks(model, ("base_measure",)):
        base = model.base_measure(params)
        for beta, at in ((0.4, None), (0.4, base), (np.linspace(0, 1, len(x)), base)):
            wanted = _slopes(lambda y, *path: model.forward(params, y, *path).energy(), x, beta, at)
            got = model.forward(params, x, beta, at).input_grad()
            _close(got, wanted, _DIFFERENCE_TOLERANCE, f"∂F/∂x at β = {beta}")


def _slopes(energy: Callable[..., Any], x: np.ndarray, *more: Any) -> np.ndarray:
    """Central differences of ``energy`` along every coordinate, the shape of x."""
    slopes = np.empty_like(x)
    h = _STEP * max(1.0, float(np.abs(x).mean()))
    for i in range(x[0].size):
        up, down = np.array(x), np.array(x)
        up.reshape(len(x), -1)[:, i] += h
        down.reshape(len(x), -1)[:, i] -= h
        slopes.reshape(len(x), -1)[:, i] = (energy(up, *more) - energy(down, *more)) / (2 * h)
    return slopes


def laplacian_is_the_trace_of_second_derivatives(
    model: Any, params: Params, x: np.ndarray, rng: Any
) -> None:
    """ΔF of every row from differences of ∂F/∂x."""
    curvature = _curvatures(model, params, x).reshape(len(x), -1).sum(axis=1)
    _close(model.laplacian(params, x), curvature, _CURVED, "ΔF")


def score_matching_is_its_definition(model: Any, params: Params, x: np.ndarray, rng: Any) -> None:
    """½|∂F/∂x|² - ΔF, and its gradient by central differences of it."""
    g = model.input_grad(params, x).reshape(len(x), -1)
    wanted = 0.5 * (g * g).sum(axis=1)
    wanted -= _curvatures(model, params, x).reshape(len(x), -1).sum(axis=1)
    _matches(model, model.score_matching, params, x, wanted, rng, "½|∂F/∂x|² - ΔF")


def squared_curvature_is_its_definition(
    model: Any, params: Params, x: np.ndarray, rng: Any
) -> None:
    """Σ_i (∂²F/∂x_i²)², and its gradient by central differences of it."""
    wanted = (_curvatures(model, params, x).reshape(len(x), -1) ** 2).sum(axis=1)
    _matches(model, model.squared_curvature, params, x, wanted, rng, "Σ_i (∂²F/∂x_i²)²")


def _curvatures(model: Any, params: Params, x: np.ndarray) -> np.ndarray:
    """∂²F/∂x_i², the shape of x."""
    bent, h = np.empty_like(x), _STEP * max(1.0, float(np.abs(x).mean()))
    flat = bent.reshape(len(x), -1)
    for i in range(x[0].size):
        step = np.zeros(x[0].size)
        step[i] = h
        up, down = (model.input_grad(params, x + s * step.reshape(x.shape[1:])) for s in (1, -1))
        flat[:, i] = (up - down).reshape(len(x), -1)[:, i] / (2 * h)
    return bent


def _matches(
    model: Any, verb: Any, params: Params, x: np.ndarray, wanted: np.ndarray, rng: Any, what: str
) -> None:
    """Values against ``wanted``, and the gradient against differences of the values."""
    w = _weights(len(x), rng)
    values, grads = verb(params, model.forward(params, x), w)
    assert values.dtype == np.float64, f"{what} has dtype {values.dtype}, wanted float64"
    _close(values, wanted, _CURVED, what)
    for name, spec in model.param_specs().items():
        if spec.trainable:
            picks = rng.permutation(params[name].size)[:50]
            slopes = []
            for flat in picks:
                sides = []
                h = _STEP * max(1.0, abs(params[name].flat[flat]))
                for sign in (1, -1):
                    moved = np.array(params[name])
                    moved.flat[flat] += sign * h
                    there = params | {name: moved}
                    sides.append(w @ verb(there, model.forward(there, x), w)[0])
                slopes.append((sides[0] - sides[1]) / (2 * h))
            got = np.ravel(grads[name])[picks]
            _close(got, slopes, _DIFFERENCE_TOLERANCE, f"gradient of {what} in {name}")


# ---------------------------------------------------------------- hidden units and sums


def free_energy_sums_out_hidden_units(model: Any, params: Params, x: np.ndarray, rng: Any) -> bool:
    """F = -log Σ_h exp(-E(x, h)) over all binary h, for up to 12 of them."""
    units = model.encode(params, x[:1]).shape[1]
    if units > _MAX_ENUMERATED or getattr(model, "latents", "binary") != "binary":
        return False
    states = all_states(units)
    for row, energy in zip(x, model.free_energy(params, x), strict=True):
        joint = -model.joint_energy(params, np.repeat(row[None], len(states), axis=0), states)
        top = joint.max()
        _close(energy, -(top + np.log(np.exp(joint - top).sum())), _EXACT, "F against the sum")
    return True


def free_energy_is_the_minimum(model: Any, params: Params, x: np.ndarray, rng: Any) -> bool:
    """F(x) = E(x, h) at the code that `infer` gives, and no code around it is better."""
    if getattr(model, "latents", "binary") != "minimized":
        return False
    found = model.infer(params, x)
    energy = model.free_energy(params, x)
    _close(model.joint_energy(params, x, found.h), energy, _EXACT, "E at the best code")
    size = max(1.0, float(np.abs(found.h).max()))
    for step in (1e-2, 1e-3, 1e-4):
        for on in (np.ones_like(found.h), found.h != 0):
            h = found.h + step * size * on * rng.standard_normal(found.h.shape)
            h = np.maximum(h, 0) if model.codes == "nonneg" else h
            better = energy - model.joint_energy(params, x, h)
            assert better.max() <= _EXACT * size, f"a code near is better by {better.max():.1e}"
    again = model.infer(params, x, start=found.h)
    _close(model.joint_energy(params, x, again.h), energy, _EXACT, "E from a warm start")
    return True


def gibbs_leaves_the_model_invariant(model: Any, params: Params, x: np.ndarray, rng: Any) -> bool:
    """πT = π, rows of T sum to 1, and detailed balance, by enumeration, at two temperatures and
    on the path from the base measure; T from the probabilities that the sampler really uses.
    For binary models of up to 10 units a side."""
    units = x.shape[1]
    if model.domain != "binary" or max(units, model.encode(params, x[:1]).shape[1]) > 10:
        return False
    v = all_states(units)
    for beta, base in ((1.0, None), (0.4, None), (0.4, model.base_measure(params))):
        passed = model.forward(params, v, beta, base)
        log_p = -passed.energy()
        p = np.exp(log_p - log_p.max())
        p /= p.sum()
        T = _transition(model, params, v, beta, base)
        _close(T.sum(axis=1), np.ones(len(T)), 1e-12, "row sums of T")
        _close(p @ T, p, 1e-12, f"πT at β = {beta}")
        flow = p[:, None] * T
        _close(flow, flow.T, 1e-12, f"detailed balance at β = {beta}")
    return True


def all_states(units: int) -> np.ndarray:
    """Every state of ``units`` bits, shape (2^units, units), float64."""
    return ((np.arange(1 << units)[:, None] >> np.arange(units)) & 1).astype(np.float64)


class Recorder:
    """A stream that keeps the logits it is asked to draw from, and draws zeros."""

    def __init__(self) -> None:
        self.logits: Any = None

    def bernoulli_logit(self, a: np.ndarray, out: Any = None, bias: Any = None) -> np.ndarray:
        """Keep ``a``, with its bias."""
        self.logits = np.array(a) if bias is None else a + bias
        return np.zeros_like(a)


def _transition(model: Any, params: Params, v: np.ndarray, beta: float, base: Any) -> np.ndarray:
    """T[v, v'] = Σ_h p(h|v) p(v'|h) from the logits that the model hands to its stream."""
    recorder = Recorder()
    model.forward(params, v, beta, base).sample_hidden(recorder)
    units = recorder.logits.shape[1]
    h = all_states(units)
    up = _product(recorder.logits, h)
    model.sample_visible(params, h, recorder, beta, base)
    return up @ _product(recorder.logits, v)


def _product(logits: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Π_j p_j^s_j (1 - p_j)^(1 - s_j) for every row of logits and every state."""
    on, off = -np.logaddexp(0, -logits), -np.logaddexp(0, logits)
    return np.exp(on @ states.T + off @ (1 - states).T)


LAWS: dict[Callable[..., bool | None], tuple[str, ...]] = {
    energy_is_free_energy: ("free_energy", "forward"),
    gradient_is_central_difference: ("free_energy", "free_energy_grad"),
    gradient_is_additive: ("forward", "free_energy_grad"),
    input_gradient_is_central_difference: ("input_grad",),
    laplacian_is_the_trace_of_second_derivatives: ("laplacian", "input_grad"),
    score_matching_is_its_definition: ("score_matching", "input_grad"),
    squared_curvature_is_its_definition: ("squared_curvature", "input_grad"),
    free_energy_sums_out_hidden_units: ("joint_energy", "encode"),
    free_energy_is_the_minimum: ("joint_energy", "infer"),
    gibbs_leaves_the_model_invariant: ("sample_hidden", "sample_visible", "base_measure"),
}
