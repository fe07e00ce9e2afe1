"""Validation of settings by their types: dataclasses, and JSON or TOML tables read into them.

msgspec checks the values; limits are in the types, as in ``Annotated[int, Meta(ge=1, le=8)]``.
What it finds is said in a sentence here: which setting it is, what it must be, and what came.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import msgspec

from dn_core.messages import unknown_settings

__all__ = ["check_fields", "from_table", "parse_json", "read_value"]

T = TypeVar("T")

WORDS = {
    bool: "true or false",
    dict: "a table",
    float: "a number",
    int: "a whole number",
    str: "text",
    tuple: "a list",
}
INDEX = re.compile(r"\[(\d+)\]")


def check_fields(settings: Any, advice: str, what: str = "") -> None:
    """Refuse a dataclass with a field that its type does not allow; for ``__post_init__``.

    Parameters
    ----------
    settings : object
        The dataclass.
    advice : str
        What to do about it: the end of the message.
    what : str, default ""
        What messages call the dataclass, where its field's names do not say it.

    Raises
    ------
    ValueError
        ``"NAME [of WHAT] must be ..., got .... ADVICE"``
    """
    kind: Any = type(settings)
    for name, hint in _types(kind).items():
        read_value(getattr(settings, name), hint, name, advice, what)


def from_table(kind: type[T], table: Any, what: str, advice: str, *, whole: bool = False) -> T:
    """A dataclass from a table of JSON or TOML.

    Parameters
    ----------
    kind : type
        The dataclass to make.
    table : object
        Its fields by name; those with a default may be missing.
    what : str
        What messages call the table.
    advice : str
        What to do about an error: the end of the message.
    whole : bool, default False
        Whether fields with a default must be there too.

    Raises
    ------
    ValueError
        When a field is unknown, missing or not what its type allows.
    """
    if not isinstance(table, dict):
        raise ValueError(f"{what} must be a table, got {_short(table)}. {advice}")
    types = _types(cast("Any", kind))
    if unknown := sorted(set(table) - set(types)):
        raise ValueError(f"{what} has {unknown_settings(map(str, unknown), types)} {advice}")
    needed = {
        one.name
        for one in fields(kind)  # type: ignore[arg-type]  # a dataclass
        if whole or (one.default is MISSING and one.default_factory is MISSING)
    }
    if missing := sorted(needed - set(table)):
        raise ValueError(f"{what} lacks the settings {missing}. {advice}")
    return kind(
        **{
            name: read_value(value, types[name], name, advice, what)
            for name, value in table.items()
        }
    )


def read_value(value: Any, kind: Any, name: str, advice: str, what: str = "") -> Any:
    """A value as its type has it, lists as tuples where that is what the type says.

    Parameters
    ----------
    value : object
        Plain data.
    kind : object
        Its type: plain, a tuple, a literal, or annotated with limits.
    name : str
        What messages call it.
    advice : str
        What to do about an error: the end of the message.
    what : str, default ""
        What it is a part of, for messages.

    Raises
    ------
    ValueError
        When the type does not allow it.
    """
    if isinstance(value, float):
        value = float(value)  # numpy's too
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        for index in map(int, INDEX.findall(str(error))):  # as in "... - at `$[0][1]`"
            kind, value, name = _item(kind, index), value[index], f"{name}[{index}]"
        name = f"{name} of {what}" if what else name
        raise ValueError(
            f"{name} must be {_expected(kind)}, got {_short(value)}. {advice}"
        ) from None


def parse_json(content: str | bytes) -> Any:
    """JSON as Python objects; duplicate keys, NaN and too deep nesting are refused.

    msgspec's parser is not used: it keeps the last of duplicate keys.

    Raises
    ------
    ValueError
        When it is not JSON of this kind.
    """
    try:
        return json.loads(
            content, object_pairs_hook=_with_unique_keys, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key is there twice")
    return table


@functools.cache
def _types(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {one.name: hints[one.name] for one in fields(kind)}


def _item(kind: Any, index: int) -> Any:
    """The type of an item of a tuple."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    items = get_args(kind)
    return items[0] if items[-1] is ... else items[index]


def _expected(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is Literal:
        *others, last = map(repr, get_args(kind))
        return f"{', '.join(others)} or {last}"
    if get_origin(kind) is Annotated:
        base, limits = get_args(kind)[:2]
        return f"{_expected(base)}{_limits(limits)}"
    if get_origin(kind) is tuple and get_args(kind)[-1] is not ...:
        return f"a list of {len(get_args(kind))} values"
    return WORDS.get(get_origin(kind) or kind, "a table")


def _limits(limits: msgspec.Meta) -> str:
    if limits.description is not None:
        return f" {limits.description}"
    if limits.max_length is not None:
        return f" of {limits.min_length or 0}..{limits.max_length} items"
    return f" in {limits.ge}..{limits.le}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
