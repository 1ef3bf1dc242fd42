"""What can go wrong, by name; bad arguments are plain ``ValueError`` and ``TypeError``."""

__all__ = [
    "CapabilityError",
    "DataRangeWarning",
    "DeviceError",
    "DivergenceError",
    "EnergyscapeError",
    "FileFormatError",
    "SamplerWarning",
    "UnnormalizedScoreWarning",
    "WorkerLostError",
]


class EnergyscapeError(Exception):
    """Base of every error that only this library raises."""


class CapabilityError(EnergyscapeError, TypeError):
    """A model lacks a verb that a trainer, sampler or method asks for."""


class DivergenceError(EnergyscapeError, ArithmeticError):
    """Training met a number that is not finite, or its chains came to rest; the model holds its
    last good epoch."""


class FileFormatError(EnergyscapeError, ValueError):
    """A file is not a model of ours, is damaged, or is from a newer format."""


class DeviceError(EnergyscapeError, RuntimeError):
    """A device was asked for that cannot be used; the message says why."""


class WorkerLostError(EnergyscapeError, ConnectionError):
    """A process that shares a fit is gone or silent.

    ``rank`` is its number among the workers (None where this process itself has hung up); the
    message says where it ran and how it was missed.
    """

    rank: int | None = None


class DataRangeWarning(UserWarning):
    """Values lie outside the range that the model's visible units can take."""


class SamplerWarning(UserWarning):
    """An estimate drawn from chains is too uncertain to be trusted."""


class UnnormalizedScoreWarning(UserWarning):
    """A score is an energy alone: it ranks rows under one model, and does not compare models."""
