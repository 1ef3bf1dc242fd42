"""Values on the command line: numbers, words, containers, and registered classes with settings."""

from __future__ import annotations

import ast
from typing import Any

from energyscape.registry import registered


class UsageError(Exception):
    """Arguments that cannot be; exit code 2."""


def parse_value(text: str) -> Any:
    """``3``, ``0.5``, ``None``, ``(28, 28)``, a word, or ``SGD(0.1, momentum=0.5)``.

    Calls construct registered classes from such values; nothing else is run.
    """
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError:
        return text
    return _value(tree, text)


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        known = registered()
        if node.func.id not in known:
            raise UsageError(f"{node.func.id!r} is none of {', '.join(known)}")
        values = [_value(a, text) for a in node.args]
        named = {str(k.arg): _value(k.value, text) for k in node.keywords}
        try:
            return known[node.func.id](*values, **named)
        except TypeError as error:
            raise UsageError(f"{text}: {error}") from error
    if isinstance(node, ast.List | ast.Tuple):
        items = [_value(item, text) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {
            _value(k, text): _value(v, text)  # type: ignore[arg-type]
            for k, v in zip(node.keys, node.values, strict=True)
        }
    number = _odd_number(node)
    if number is not None:
        return number
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return ast.get_source_segment(text, node)


def _odd_number(node: ast.expr) -> float | None:
    """``inf``, ``-inf`` and ``nan``, which are no literals of Python."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _odd_number(node.operand)
        return None if number is None else -number
    known = isinstance(node, ast.Name) and node.id in ("inf", "nan")
    return float(node.id) if known else None  # type: ignore[attr-defined]


def settings_of(pairs: list[str], flag: str) -> dict[str, Any]:
    """``name=value`` pairs, given by ``flag``, as a dictionary."""
    settings = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"{flag} takes name=value, got {pair!r}")
        settings[name] = parse_value(text)
    return settings


def construct(kind: str, base: type, settings: dict[str, Any]) -> Any:
    """An object of the registered class ``kind``, which must be a ``base``."""
    known = registered(base)
    if kind not in known:
        raise UsageError(f"{kind!r} is none of {', '.join(known)}")
    try:
        return known[kind](**settings)
    except TypeError as error:
        raise UsageError(f"{kind}: {error}") from error
