# SPDX-License-Identifier: BSD-2-Clause
"""YAML, less what a topology does not need, and with the place of each key and value.

Left out: anchors and aliases (a few lines of them expand to gigabytes), tags, several documents, and the
scalars of YAML 1.1 that surprise: here 52:54:00:00:00:01 is a string and no number to the base of 60, 0660
stays as written, and yes, no, on and off are words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from vpt.errors import TopologyError

__all__ = ["Document", "Path", "Place", "Problem", "Problems", "parse"]

Path = tuple[str | int, ...]

_MAX_BYTES = 1 << 20
_MAX_DEPTH = 16
# Beyond these a reader mends the first ones and asks again.
_MAX_SHOWN = 10
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?", re.ASCII)
# More digits than any number here has, and few enough for int().
_MAX_DIGITS = 20
_WORDS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NOTHING = ("", "~", "null", "Null", "NULL")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Both counted from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong with a file."""

    place: Place
    what: str
    hint: str


class Problems:
    """What is wrong with one file, collected so that it can be mended in one go."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._found: list[Problem] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, place: Place, what: str, hint: str) -> None:
        self._found.append(Problem(place, what, hint))

    def error(self) -> TopologyError:
        """All of them as one exception. There must be one at least."""
        found = sorted(set(self._found))
        lines = [f"{self._source}:{p.place.line}:{p.place.column}: {p.what}" for p in found]
        if len(found) == 1:
            return TopologyError(lines[0], hint=found[0].hint)
        shown = [f"{line} ({p.hint})" for line, p in zip(lines, found, strict=True)][:_MAX_SHOWN]
        if len(found) > _MAX_SHOWN:
            shown.append(f"and {len(found) - _MAX_SHOWN} more")
        return TopologyError(
            "\n".join(shown), hint="nothing was changed; what is allowed: vpt apply --schema"
        )

    def check(self) -> None:
        """Raise error() if there is anything."""
        if self._found:
            raise self.error()


@dataclass(slots=True)
class Document:
    """data: dicts, lists, strings, numbers; values, keys: where each is, by its path from the top."""

    data: Any = None
    values: dict[Path, Place] = field(default_factory=dict)
    keys: dict[Path, Place] = field(default_factory=dict)

    def place(self, path: Path, *, key: bool = False) -> Place:
        """Of what is at `path`, or of the innermost thing around it. key: of the key, not its value."""
        if key and path in self.keys:
            return self.keys[path]
        while path not in self.values and path:
            path = path[:-1]
        return self.values.get(path, Place(1, 1))


@dataclass(slots=True)
class _Open:
    """A mapping or a sequence whose end has not come yet."""

    path: Path
    into: dict[str, Any] | list[Any]
    key: str | None = None


def parse(text: bytes, source: str) -> Document:
    """The document in `text`. TopologyError names `source`, line and column of what is not allowed."""
    problems = Problems(source)
    decoded = _decode(text, problems)
    builder = _Builder(problems)
    try:
        for event in _events(decoded):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "no YAML"
        problems.add(_place(mark), f"no valid YAML: {what}", "look at the indentation and quotes there")
    except yaml.reader.ReaderError as error:
        place = _place_of_offset(decoded, error.position)
        problems.add(place, f"no valid YAML: {error.reason}", "remove that character")
    if not problems and builder.document.data is None:
        problems.add(Place(1, 1), "the file is empty", "an empty topology is: switches: []")
    problems.check()
    return builder.document


def _events(text: str) -> Iterator[Any]:
    return yaml.parse(text, Loader=_LOADER)


def _decode(text: bytes, problems: Problems) -> str:
    if len(text) > _MAX_BYTES:
        problems.add(
            Place(1, 1),
            f"the file is longer than {_MAX_BYTES >> 10} KiB",
            "make many alike with count, see docs/topology.md",
        )
        problems.check()
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        before = text[: error.start].decode()
        problems.add(_place_of_offset(before, len(before)), "no UTF-8 text", "is that the right file?")
        raise problems.error() from None


def _place_of_offset(text: str, offset: int) -> Place:
    before = text[:offset]
    return Place(before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1)


def _place(mark: Any) -> Place:
    return Place(mark.line + 1, mark.column + 1) if mark is not None else Place(1, 1)


class _Builder:
    """Events in, a Document out. Problems that make the rest meaningless are raised at once."""

    def __init__(self, problems: Problems) -> None:
        self.document = Document()
        self._problems = problems
        self._open: list[_Open] = []
        self._documents = 0

    def take(self, event: Any) -> None:
        """One event of the parser."""
        place = _place(event.start_mark)
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self._refuse(place, "a second document", "one topology per file: remove the line ---")
        elif isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            self._refuse(
                place,
                "anchors and aliases are not allowed",
                "make many alike with count, see docs/topology.md",
            )
        elif getattr(event, "tag", None):
            self._refuse(
                place, f"tags are not allowed: {event.tag}", "remove it; quote what is to be a string"
            )
        elif isinstance(event, yaml.ScalarEvent):
            self._scalar(event, place)
        elif isinstance(event, yaml.MappingStartEvent):
            self._begin({}, place)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._begin([], place)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()

    def _refuse(self, place: Place, what: str, hint: str) -> None:
        self._problems.add(place, what, hint)
        raise self._problems.error()

    def _scalar(self, event: Any, place: Place) -> None:
        top = self._open[-1] if self._open else None
        if top is not None and isinstance(top.into, dict) and top.key is None:
            self._key(top, event.value, place)
        else:
            self._value(event.value if event.style else self._plain(event.value, place), place)

    def _key(self, top: _Open, key: str, place: Place) -> None:
        path = (*top.path, key)
        if (first := self.document.keys.get(path)) is not None:
            self._refuse(
                place, f"{key!r} appears twice in the same place", f"line {first.line} has it too; remove one"
            )
        self.document.keys[path] = place
        top.key = key

    def _plain(self, text: str, place: Place) -> Any:
        if text in _NOTHING:
            return None
        if text in _WORDS:
            return _WORDS[text]
        if _INT.fullmatch(text):
            if len(text) > _MAX_DIGITS:
                self._refuse(place, "a number of too many digits", "quote it if it is to be a string")
            return int(text)
        return float(text) if _FLOAT.fullmatch(text) else text

    def _begin(self, into: dict[str, Any] | list[Any], place: Place) -> None:
        if len(self._open) == _MAX_DEPTH:
            self._refuse(place, f"nested deeper than {_MAX_DEPTH} levels", "no topology needs that")
        self._open.append(_Open(self._value(into, place), into))

    def _value(self, value: Any, place: Place) -> Path:
        if not self._open:
            self.document.data = value
            self.document.values[()] = place
            return ()
        top = self._open[-1]
        if isinstance(top.into, list):
            path: Path = (*top.path, len(top.into))
            top.into.append(value)
        elif top.key is None:
            self._refuse(place, "a key must be a word", "write KEY: VALUE")
            raise AssertionError
        else:
            path = (*top.path, top.key)
            top.into[top.key] = value
            top.key = None
        self.document.values[path] = place
        return path
