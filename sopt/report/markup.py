"""HTML and SVG from function calls; every text and attribute is escaped on the way in."""

from __future__ import annotations

import html

VOID = {"meta", "img"}  # in HTML: no content, no closing tag


class Markup(str):
    """Text that is HTML already, so that it is not escaped again."""

    __slots__ = ()


def element(name: str, /, *children: str | None, **attributes: object) -> Markup:
    """An element; children that are not :class:`Markup` are text and are escaped, None is nothing.

    In names of attributes ``_`` stands for ``-``, and one at the end is dropped (``class_``);
    attributes that are None are left out.

    Example:
        >>> element("p", "1 < 2", class_="note")
        '<p class="note">1 &lt; 2</p>'
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{join(*children)}</{name}>")


def join(*children: str | None) -> Markup:
    """Children one after the other, escaped unless they are :class:`Markup`."""
    return Markup("".join(map(_escaped, filter(None, children))))


def _escaped(child: str) -> str:
    return child if isinstance(child, Markup) else html.escape(child)
