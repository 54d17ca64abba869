"""Small tables for notebooks. Every text is escaped: names of files and axes come from users."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_TABLE = """\
<div><strong>{{ head }}</strong>
<table>
<thead><tr>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}
<tr>{% for value in row %}<td>{{ value if value is not none }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table>{% for note in notes %}
<p>{{ note }}</p>{% endfor %}</div>
"""
# Rows shown before the rest is only counted.
MOST = 60


def html_table(head: str, columns: Sequence[str], rows: Iterable[Sequence[object]], notes: Iterable[str] = ()) -> str:
    """Return a table as HTML, as ``_repr_html_`` gives it to a notebook: a head, the first MOST rows, and notes."""
    from jinja2 import Environment

    every = list(rows)
    more = [f"... and {len(every) - MOST:,} more"] if len(every) > MOST else []
    template = Environment(autoescape=True).from_string(_TABLE)
    return template.render(head=head, columns=columns, rows=every[:MOST], notes=[*more, *notes])
