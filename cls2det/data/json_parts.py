"""A long list of JSON, parsed a part at a time by msgspec."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

PART = 4 * 2**20  # bytes that are parsed at a time
BETWEEN = re.compile(rb"\}\s*,\s*\{")
TRIES = 1000  # places between objects that may lie within one


class Strange(Exception):
    """What is not plain: the file is to be read as a whole, and then the checks say what is wrong, if anything is."""


def parts_of(raw: memoryview, fields: dict[str, Any], optional: dict[str, Any] | None = None) -> Iterator[Sequence[Any]]:
    """A list of objects in parts: records with these fields or, where one has others, dictionaries.

    A part ends where ``}, {`` stands between two objects and not within one. Which it is shows when the part is parsed: cut within an
    object, or within a text, it has a bracket or a quotation mark that is not closed.
    """
    import msgspec

    more = [(name, kind | None, None) for name, kind in (optional or {}).items()]
    record = msgspec.defstruct("Record", [*fields.items(), *more], gc=False)
    decoder = msgspec.json.Decoder(list[record])  # type: ignore[valid-type]
    start, stop = 1, len(raw) - 1
    if raw[0] != ord("[") or raw[stop] != ord("]"):
        raise Strange
    while start < stop:
        for tries, match in enumerate(BETWEEN.finditer(raw, min(start + PART, stop))):
            if tries == TRIES:
                raise Strange
            part = _parsed(decoder, b"[" + raw[start : match.start() + 1] + b"]")
            if part is not None:
                following = match.end() - 1
                break
        else:
            part, following = _parsed(decoder, b"[" + raw[start:stop] + b"]"), stop
        if part is None:
            raise Strange
        if part:
            yield part
        start = following


def _parsed(decoder: Any, text: bytes) -> Sequence[Any] | None:
    """None where the text is no list."""
    import msgspec

    part: Sequence[Any]
    try:
        part = decoder.decode(text)
        return part
    except msgspec.ValidationError:
        try:
            msgspec.json.decode(text, type=list[msgspec.Raw])
        except msgspec.DecodeError:
            return None
    except msgspec.DecodeError:
        return None
    part = json.loads(text)
    if not all(isinstance(one, dict) for one in part):
        raise Strange
    return part
