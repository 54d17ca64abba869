"""The report page as a test reads it."""

from __future__ import annotations

from html.parser import HTMLParser

EVIL = "</td><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> & \"more\""


class Page(HTMLParser):
    """The results table as rows of {column: (text, exact)}, and every address, tag and script of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[dict[str, str]] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.keys: list[str] = []
        self._in_table = self._in_cell = self._in_code = False
        self._exact: str | None = None
        self._cell = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        assert not [name for name in given if name.startswith("on")], "no handler stands in the markup"
        self._in_code = tag in ("script", "style")
        if tag == "table":
            self._in_table = given.get("id") == "results"
        elif self._in_table and tag == "th":
            self.keys.append(given["data-k"] or "")
        elif self._in_table and tag == "tr" and self.keys:
            self.rows.append({})
        elif self._in_table and tag == "td":
            self._in_cell, self._cell, self._exact = True, "", given.get("data-v")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._in_table = False
        elif tag == "td" and self._in_cell:
            row = self.rows[-1]
            row[self.keys[len(row)]] = self._cell if self._exact is None else self._exact
            self._in_cell = False
        self._in_code = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self._cell += data
        if not self._in_code:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)
