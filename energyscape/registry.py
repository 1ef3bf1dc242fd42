"""Name -> class, and estimators as JSON trees: how files name objects without running code.

A tree is ``{"class": name, "params": {...}}`` with the constructor's arguments inside; tuples and
numbers that JSON does not know are tagged. Only registered classes are ever constructed.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from sklearn.pipeline import Pipeline

from energyscape.errors import FileFormatError

_CLASSES: dict[str, type] = {}
C = TypeVar("C", bound=type)
_LEFT_OUT = object()


def register(cls: C) -> C:
    """Make ``cls`` known by its name to files, errors and what runs in this process.

    Parameters
    ----------
    cls : type
        A class with ``get_params`` whose constructor only stores its arguments.

    Returns
    -------
    cls : type
        The same class, so that ``register`` serves as a decorator.

    Raises
    ------
    ValueError
        If another class has that name.
    """
    known = _CLASSES.get(cls.__name__)
    if known is not None and (known.__module__, known.__qualname__) != (
        cls.__module__,
        cls.__qualname__,
    ):
        raise ValueError(
            f"the name {cls.__name__!r} is taken by {known.__module__}.{known.__qualname__}; "
            f"rename {cls.__module__}.{cls.__qualname__}"
        )
    _CLASSES[cls.__name__] = cls
    return cls


def registered(base: type = object) -> dict[str, type]:
    """Registered classes that derive from ``base``, by name, in alphabetical order."""
    return {k: _CLASSES[k] for k in sorted(_CLASSES) if issubclass(_CLASSES[k], base)}


def lookup(name: str, base: type = object) -> Any:
    """The class registered under ``name``; `FileFormatError` says which ones there are."""
    found = registered(base).get(name)
    if found is None:
        raise FileFormatError(
            f"no class {name!r} is registered (known: {', '.join(registered(base))}); import the "
            "package that defines it, or call energyscape.register on it, before loading"
        )
    return found


def to_tree(value: Any, path: str = "") -> Any:
    """JSON-able tree of a parameter value.

    What cannot be stored (functions, classes that are not registered) is left out with a warning
    that names it: a parameter becomes None, an item of a list is dropped.
    """
    tree = _to_tree(value, path)
    return None if tree is _LEFT_OUT else tree


def _to_tree(value: Any, path: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return {"array": {"dtype": value.dtype.str, "values": _to_tree(value.tolist(), path)}}
    if isinstance(value, list | tuple):
        items = [_to_tree(v, f"{path}[{i}]") for i, v in enumerate(value)]
        items = [item for item in items if item is not _LEFT_OUT]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"dict": {k: to_tree(v, f"{path}[{k!r}]") for k, v in value.items()}}
    if isinstance(value, Pipeline):  # without its memory: a cache holds pickles
        return {"pipeline": [[name, to_tree(s, f"{path}.{name}")] for name, s in value.steps]}
    name = type(value).__name__
    if _CLASSES.get(name) is type(value):
        params = dict(value.get_params(deep=False))  # type: ignore[attr-defined]
        if isinstance(params.get("random_state"), np.random.RandomState | np.random.Generator):
            params["random_state"] = getattr(value, "seed_", None)  # the integer drawn from it
        return {"class": name, "params": {k: to_tree(v, f"{path}.{k}") for k, v in params.items()}}
    what = getattr(value, "__qualname__", name)
    warnings.warn(
        f"{path.lstrip('.') or 'the value'} = {what} is not stored: only numbers, strings, "
        "containers of them and registered classes are; it will be missing when loaded",
        UserWarning,
        stacklevel=2,
    )
    return _LEFT_OUT


def from_tree(tree: Any) -> Any:
    """The value that `to_tree` wrote; `FileFormatError` where the tree is malformed."""
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if isinstance(tree, list):
        return [from_tree(v) for v in tree]
    if isinstance(tree, dict):
        if set(tree) == {"class", "params"} and isinstance(tree["params"], dict):
            return _construct(tree["class"], tree["params"])
        if len(tree) == 1:
            ((tag, inner),) = tree.items()
            reader = _TAGS.get(tag)
            if reader is not None:
                return reader(inner)
    raise FileFormatError(f"malformed parameter tree: {str(tree)[:80]}")


def _construct(name: str, params: dict[str, Any]) -> Any:
    cls = lookup(name)
    values = {k: from_tree(v) for k, v in params.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise FileFormatError(f"{name} does not take the stored parameters: {error}") from error


def _read_float(text: Any) -> float:
    if text not in ("inf", "-inf", "nan"):
        raise FileFormatError(f"malformed number {text!r}")
    return float(text)


def _read_dict(inner: Any) -> dict[str, Any]:
    if not isinstance(inner, dict):
        raise FileFormatError("malformed dictionary in a parameter tree")
    return {k: from_tree(v) for k, v in inner.items()}


def _read_tuple(inner: Any) -> tuple[Any, ...]:
    if not isinstance(inner, list):
        raise FileFormatError("malformed tuple in a parameter tree")
    return tuple(from_tree(v) for v in inner)


def _read_pipeline(inner: Any) -> Pipeline:
    if not isinstance(inner, list) or not all(isinstance(s, list) and len(s) == 2 for s in inner):
        raise FileFormatError("malformed pipeline in a parameter tree")
    return Pipeline([(name, from_tree(step)) for name, step in inner])


def _read_array(inner: Any) -> np.ndarray:
    if not isinstance(inner, dict) or set(inner) != {"dtype", "values"}:
        raise FileFormatError("malformed array in a parameter tree")
    try:
        dtype = np.dtype(inner["dtype"])
        if dtype.kind not in "fiub":
            raise TypeError(f"dtype {dtype} is not numeric")
        return np.array(from_tree(inner["values"]), dtype)
    except (TypeError, ValueError) as error:
        raise FileFormatError(f"malformed array in a parameter tree: {error}") from error


_TAGS: dict[str, Callable[[Any], Any]] = {
    "float": _read_float,
    "dict": _read_dict,
    "tuple": _read_tuple,
    "array": _read_array,
    "pipeline": _read_pipeline,
}
