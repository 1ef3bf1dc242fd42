"""Gabor functions fitted to square images: a plane wave under a Gaussian envelope.

g(x, y) = exp(-X²/2s² - Y²/2t²) (a cos 2πfX + b sin 2πfX), where (X, Y) is (x, y) from the centre of
the envelope, turned by θ; the wave runs along θ.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.optimize import least_squares

# Bounds, in pixels; nothing was tuned to them. The centre stays on the patch, the envelope's
# deviations are at most half a side, waves are no longer than eight sides or shorter than 2 pixels
# along the diagonal.
NARROWEST, SHORTEST = 0.5, 2**0.5
# (factor on the wave number of the spectral peak, turn in radians, deviation along the wave in
# wavelengths, deviation across over that along): the 8 starts.
STARTS = (
    (1.0, 0.0, 0.3, 1.0),
    (1.0, 0.0, 0.3, 2.0),
    (1.0, 0.0, 0.6, 1.0),
    (1.0, 0.0, 0.6, 0.6),
    (1.0, 0.25, 0.4, 1.0),
    (1.0, -0.25, 0.4, 1.0),
    (0.6, 0.0, 0.3, 1.0),
    (1.4, 0.0, 0.4, 1.5),
)


def fit(image: np.ndarray) -> dict[str, float]:
    """The best of the starts: r2 (share of the sum of squares explained), x, y, theta in [0, π),
    frequency (cycles a pixel), along, across (deviations)."""
    side = len(image)
    target = image.ravel() / np.sqrt((image**2).sum())
    y, x = (v.ravel().astype(np.float64) for v in np.mgrid[:side, :side])
    low = np.array([0, 0, -np.inf, 1 / (8 * side), NARROWEST, NARROWEST, -np.inf, -np.inf])
    half = side / 2
    high = np.array([side - 1, side - 1, np.inf, 1 / SHORTEST, half, half, np.inf, np.inf])
    turn, wave = spectral_peak(image)
    place = gaussian_filter(image**2, 1.5, mode="constant")
    top, left = np.unravel_index(place.argmax(), place.shape)
    best: Any = None
    for factor, more, along, ratio in STARTS:
        f = np.clip(wave * factor, low[3] * 1.01, high[3] * 0.99)
        s = np.clip(along / f, 1.0, half * 0.9)
        t = np.clip(s * ratio, 1.0, half * 0.9)
        v = np.array([left, top, turn + more, f, s, t, 0.0, 0.0])
        v[:2] = np.clip(v[:2], 0.01, side - 1.01)
        basis = _parts(v, x, y)[4:]
        v[6:] = np.linalg.lstsq(np.stack(basis, axis=1), target, rcond=None)[0]
        found = least_squares(
            lambda v: _gabor(v, x, y) - target,
            v,
            lambda v: _slopes(v, x, y),
            bounds=(low, high),
            x_scale=np.array([1, 1, 0.2, 0.03, 1, 1, 0.1, 0.1]),
            max_nfev=60,
        )
        if best is None or found.cost < best.cost:
            best = found
    names = ("x", "y", "theta", "frequency", "along", "across")
    values = dict(zip(names, map(float, best.x), strict=False))
    values["theta"] %= np.pi
    return {"r2": 1 - 2 * float(best.cost)} | values


def spectral_peak(image: np.ndarray) -> tuple[float, float]:
    """(direction, cycles a pixel) of the strongest wave, from a spectrum four times as fine."""
    n = 4 * len(image)
    power = abs(np.fft.fft2(image, (n, n))) ** 2
    at = np.fft.fftfreq(n)
    down, right = np.meshgrid(at, at, indexing="ij")
    power[np.hypot(down, right) < 1 / n] = 0  # a constant is no wave
    i, j = np.unravel_index(power.argmax(), power.shape)
    return float(np.arctan2(down[i, j], right[i, j])), float(np.hypot(down[i, j], right[i, j]))


def _parts(v: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """X, Y, and the envelope times 1, and times cosine and sine."""
    x0, y0, theta, f, s, t = v[:6]
    c, d = np.cos(theta), np.sin(theta)
    X, Y = (x - x0) * c + (y - y0) * d, (y - y0) * c - (x - x0) * d
    envelope = np.exp(-0.5 * ((X / s) ** 2 + (Y / t) ** 2))
    phase = 2 * np.pi * f * X
    return X, Y, envelope, phase, envelope * np.cos(phase), envelope * np.sin(phase)


def _gabor(v: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    *_, even, odd = _parts(v, x, y)
    return v[6] * even + v[7] * odd


def _slopes(v: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """∂g/∂v, shape (pixels, 8)."""
    X, Y, _, _, even, odd = _parts(v, x, y)
    theta, f, s, t, a, b = v[2:]
    g, quarter = a * even + b * odd, b * even - a * odd
    of_x, of_y = 2 * np.pi * f * quarter - g * X / s**2, -g * Y / t**2
    c, d = np.cos(theta), np.sin(theta)
    columns = [
        -c * of_x + d * of_y,
        -d * of_x - c * of_y,
        Y * of_x - X * of_y,
        2 * np.pi * X * quarter,
        g * X**2 / s**3,
        g * Y**2 / t**3,
        even,
        odd,
    ]
    return np.stack(columns, axis=1)
