"""HTML elements, and how values are written in the cells of tables."""

from __future__ import annotations

import html

import numpy as np
import pandas as pd

_FORMATS = {
    "device_hours": ".3g",
    "failed_hours": ".3g",
    "psnr_db": ".2f",
    "usage": ".3f",
    "perplexity": ".1f",
    "device_seconds": ".0f",
    "ssim": ".3f",
}


class Markup(str):
    """Text that is HTML already; all other text is escaped by :func:`tag`."""


def tag(element: str, /, *children: object, **attributes: object) -> Markup:
    """An element. Children that are no Markup and attribute values are escaped; class_ stands for class, data_v for
    data-v; an attribute that is True stands alone, one that is None or False is left out."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    shown = "".join(
        f" {key}" if value is True else f' {key}="{html.escape(str(value))}"'
        for key, value in given.items()
        if value is not None and value is not False
    )
    inner = "".join(child if isinstance(child, Markup) else html.escape(str(child)) for child in children)
    return Markup(
        f"<{element}{shown}>" if element in ("img", "input", "meta") else f"<{element}{shown}>{inner}</{element}>"
    )


def join(parts: list[Markup]) -> Markup:
    return Markup("\n".join(part for part in parts if part))


def scroll_box(content: Markup, name: str, class_: str = "scroll") -> Markup:
    """A box that scrolls where its content is wider than the page, by keyboard as well; ``name`` says what is in it."""
    return tag("div", content, class_=class_, tabindex=0, role="region", aria_label=name)


def width_class(text: str) -> str:
    """The class of a cell of a table: long text gets a wide column, so that its row stays low."""
    return "longer" if len(text) > 100 else "long" if len(text) > 40 else ""


def text_cell(text: str) -> Markup:
    return tag("td", text, class_=width_class(text) or None)


def _missing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def text_of(name: str, value: object) -> str:
    """A value to read."""
    if _missing(value):
        return ""
    if isinstance(value, np.ndarray | list | tuple):
        return ", ".join(text_of(name.removesuffix("_per_group"), one) for one in value)
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return format(float(value), _FORMATS.get(name, ".4g"))
    return str(value)


def exact_text(value: object) -> str:
    """A value to sort and to filter by: of a number, all its digits."""
    if isinstance(value, float | np.floating):
        return "" if _missing(value) else repr(float(value))
    return text_of("", value)


def plain_table(frame: pd.DataFrame, name: str) -> Markup:
    """A table that neither sorts nor filters; ``name`` says what is in it."""
    numeric = {column for column in frame if pd.api.types.is_numeric_dtype(frame[column])}
    heads = [tag("th", str(one).replace("_", " "), class_="n" if one in numeric else None) for one in frame]
    rows = [
        tag(
            "tr",
            *(
                tag("td", shown, class_="n") if column in numeric else text_cell(shown)
                for column, value in zip(frame, row, strict=True)
                for shown in [text_of(str(column), value)]
            ),
        )
        for row in frame.to_numpy(object)
    ]
    return scroll_box(tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows)), name)
