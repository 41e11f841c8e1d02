# SPDX-License-Identifier: BSD-2-Clause
"""XML whose bytes stay as they are: a tree that knows where each element stands in the text, and edits there.

What is put in begins right behind something that is not white space and brings its own white space along.
So taking an element out together with the white space before it is the exact inverse.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from xml.parsers import expat

from vpt.errors import UsageError

__all__ = ["Document", "Edit", "Element", "domain_element", "parse", "quote"]

_SPACE = b" \t\r\n"
_STEP = "  "
# By hand, because xml.sax.saxutils brings an HTTP client along.
_ESCAPED = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "'": "&apos;", "\n": "&#10;", "\t": "&#9;", "\r": "&#13;"}
)


@dataclass(slots=True, eq=False)
class Element:
    """One element. name: "local" or "uri local".

    The text is [start, end); what is between its tags is [inner, outer), for <x/> empty and at the end.
    """

    name: str
    attrs: dict[str, str]
    start: int
    inner: int
    outer: int
    end: int
    parent: Element | None
    closed: bool
    children: list[Element] = field(default_factory=list)
    text: str = ""

    def find(self, path: str | Sequence[str]) -> Element | None:
        """First descendant at that path."""
        return next(self.all(path), None)

    def all(self, path: str | Sequence[str]) -> Iterator[Element]:
        """Descendants at "a/b/c", in order; names with a namespace, which has slashes, as a sequence."""
        head, *rest = path.split("/") if isinstance(path, str) else path
        for child in self.children:
            if child.name == head:
                if rest:
                    yield from child.all(rest)
                else:
                    yield child

    def attr(self, path: str, name: str) -> str | None:
        """The attribute of the first descendant at `path`."""
        found = self.find(path)
        return None if found is None else found.attrs.get(name)

    def number(self, name: str) -> int:
        """An attribute as libvirt reads numbers, 0 where it is not there. UsageError: it is none."""
        value = self.attrs.get(name, "0")
        try:
            return int(value, 0)
        except ValueError:
            raise UsageError(
                f"{name}={value!r} of a <{self.name}> in the domain's XML is not a number",
                hint="virt-xml-validate FILE domain says what else libvirt would not take",
            ) from None


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace [start, end) with `new`."""

    start: int
    end: int
    new: bytes


class Document:
    """A parsed text. Edits are collected, and made all at once by `edited()`."""

    def __init__(self, data: bytes, root: Element) -> None:
        self.data = data
        self.root = root
        self._newline = "\r\n" if b"\r\n" in data else "\n"
        self._edits: list[Edit] = []

    def source(self, element: Element) -> str:
        """The element as it is written."""
        return self.data[element.start : element.end].decode()

    def is_bare(self, element: Element, *without: Element) -> bool:
        """Is there nothing in it but white space, once these children are gone?"""
        at, rest = element.inner, b""
        for child in without:
            rest += self.data[at : child.start]
            at = child.end
        return not (rest + self.data[at : element.outer]).strip(_SPACE)

    # ---- edits ----

    def append(self, parent: Element, *lines: str) -> None:
        """Put these lines, one element or more, behind all that `parent` has. They are indented to fit."""
        indent = self._indent(parent)
        if parent.closed:
            tag = self.data[parent.start : parent.end].decode().rstrip("/>").rstrip()
            block = "".join(self._line(indent, _STEP + line) for line in lines)
            text = f"{tag}>{block}{self._line(indent, f'</{_tag_name(tag)}>')}"
            self._edits.append(Edit(parent.start, parent.end, text.encode()))
            return
        at = len(self.data[: parent.outer].rstrip(_SPACE))
        block = "".join(self._line(indent, _STEP + line) for line in lines)
        self._edits.append(Edit(at, at, block.encode()))

    def insert_after(self, element: Element, *lines: str) -> None:
        """Put these lines behind `element`, indented as it is."""
        indent = self._indent(element)
        block = "".join(self._line(indent, line) for line in lines)
        self._edits.append(Edit(element.end, element.end, block.encode()))

    def remove(self, element: Element) -> None:
        """Take the element out, with the white space before it."""
        start = len(self.data[: element.start].rstrip(_SPACE))
        self._edits.append(Edit(start, element.end, b""))

    def replace(self, element: Element, source: str) -> None:
        """Write `source` in the element's place."""
        self._edits.append(Edit(element.start, element.end, source.encode()))

    def edited(self) -> str:
        """The text with all edits made.

        Of two insertions at one place, the one asked for first comes first; what begins there is behind both.
        """
        out, at = [], 0
        for edit in sorted(self._edits, key=lambda edit: (edit.start, edit.end)):
            out += [self.data[at : edit.start], edit.new]
            at = edit.end
        return b"".join([*out, self.data[at:]]).decode()

    def _line(self, indent: str | None, line: str) -> str:
        return line.strip() if indent is None else self._newline + indent + line

    def _indent(self, element: Element) -> str | None:
        """White space before the element, if it begins a line; None if the text has all in one line."""
        before = self.data[: element.start]
        line = before.rpartition(b"\n")[2]
        if line.strip(_SPACE) == b"" and (b"\n" in before or element.parent is None):
            return line.decode() if b"\n" in self.data else None
        return None


def _tag_name(start_tag: str) -> str:
    return start_tag[1:].split(None, 1)[0]


def parse(text: str) -> Document:
    """Raises UsageError with line and column for what is not XML, or uses a DTD."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the domain XML is not Unicode: {error.reason}") from None
    return Document(data, _Builder(data).build())


def domain_element(xml: str) -> tuple[Document, Element]:
    """Parsed, and sure to be a domain."""
    document = parse(xml)
    if document.root.name != "domain":
        raise UsageError(
            f"this is a <{document.root.name}>, not a <domain>", hint="virsh dumpxml --inactive DOMAIN"
        )
    return document, document.root


def quote(value: str) -> str:
    """An attribute's value, in the quotes that libvirt writes."""
    return f"'{value.translate(_ESCAPED)}'"


class _Builder:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._open: list[Element] = []
        self._root: Element | None = None
        # A text in memory is UTF-8 here, whatever its declaration says.
        self._parser = expat.ParserCreate("utf-8", " ")
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._parser.StartDoctypeDeclHandler = self._doctype

    def build(self) -> Element:
        try:
            self._parser.Parse(self._data, True)
        except expat.ExpatError as error:
            raise UsageError(
                f"the domain XML is not well-formed, line {error.lineno} column {error.offset}:"
                f" {expat.ErrorString(error.code)}",
                hint="see it: virsh dumpxml --inactive DOMAIN",
            ) from None
        assert self._root is not None
        return self._root

    def _start(self, name: str, attrs: dict[str, str]) -> None:
        start = self._parser.CurrentByteIndex
        inner = _tag_end(self._data, start)
        closed = self._data[inner - 2 : inner] == b"/>"
        parent = self._open[-1] if self._open else None
        element = Element(name, attrs, start, inner, inner, inner, parent, closed)
        if parent is None:
            self._root = element
        else:
            parent.children.append(element)
        self._open.append(element)

    def _end(self, _name: str) -> None:
        element = self._open.pop()
        if not element.closed:
            element.outer = self._parser.CurrentByteIndex
            element.end = self._data.index(b">", element.outer) + 1

    def _text(self, text: str) -> None:
        self._open[-1].text += text

    def _doctype(self, *_args: object) -> None:
        raise UsageError("the domain XML has a document type, which libvirt does not use", hint="remove it")


def _tag_end(data: bytes, start: int) -> int:
    """Behind the > of the start tag; one within quotes is none."""
    quote = b""
    for at in range(start, len(data)):
        char = data[at : at + 1]
        if quote:
            quote = b"" if char == quote else quote
        elif char in (b"'", b'"'):
            quote = char
        elif char == b">":
            return at + 1
    raise AssertionError("the parser has seen the end of this tag")
