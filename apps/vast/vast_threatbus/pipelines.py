"""The text of every pipeline that the node runs.

No value of an indicator is ever part of a text: values are rows on a pipeline's standard input,
or come out of a lookup table. What is put in are names and numbers of the configuration.
"""

from __future__ import annotations

import json
from typing import Final

#: Every string and every address in an event, however deep, in lower case, each of them once;
#: then a row for each that the table holds.
_LOOK_UP: Final = """\
this = {{
  key: flatten({{v: flatten(this).values()
    .where(v => type_kind(v) in ["string", "ip", "list"])
    .map(v => v.map(x => string(x).to_lower()) if type_kind(v) == "list"
              else [string(v).to_lower()])}}).v.distinct(),
  event: this.print_ndjson(),
}}
unroll key
context_enrich {table}, key=key, into=ids
where ids != null
"""

_PRINT: Final = """\
drop ids
write_ndjson
"""
_PRINT_IDS: Final = "write_ndjson\n"


def create(table: str) -> str:
    """Make the lookup table; fails if it is there."""
    return f"context_create_lookup_table {_quoted(table)}"


def reset(table: str) -> str:
    """Empty the lookup table; fails if there is none."""
    return f"context_reset {_quoted(table)}"


def update(table: str) -> str:
    """Put rows ``{"key": …, "ids": […]}`` into the lookup table, in place of earlier ones."""
    return f"{_READ_ROWS}context_update {_quoted(table)}, key=key, value=ids"


def erase(table: str) -> str:
    """Take rows ``{"key": …}`` out of the lookup table."""
    return f"{_READ_ROWS}context_erase {_quoted(table)}, key=key"


def live(source: str, table: str) -> str:
    """Print a line ``{"key": …, "event": "…"}`` for each key that an event holds, for ever."""
    return f"{source}\n{_LOOK_UP.format(table=_quoted(table))}{_PRINT}"


def retro(source: str, table: str, max_events: int) -> str:
    """Print such lines, with the ids of the rows, for what is stored.

    For each key `max_events` at most; 0: all.
    """
    limit = f"deduplicate key, limit={max_events:d}\n" if max_events else ""
    return f"{source}\n{_LOOK_UP.format(table=_quoted(table))}{limit}{_PRINT_IDS}"


# Without `raw`, what looks like an address or a time would become one, and be no string.
_READ_ROWS: Final = "from_stdin { read_ndjson raw=true }\n"


def _quoted(name: str) -> str:
    """Give a name of the configuration as a string of the query language."""
    return json.dumps(name, ensure_ascii=False)
