"""What stands in a configuration before a schema has seen it: keys, nulls, text of variables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final


class EnvText(str):
    """The text of an environment variable, which means nothing until a schema says what it is."""

    variable: str
    """The variable's name."""

    def __new__(cls, text: str, variable: str) -> EnvText:
        """Keep `text`, and the name of the `variable` that it came from."""
        self = super().__new__(cls, text)
        self.variable = variable
        return self

    def guess(self) -> object:
        """What Dynaconf would take the text for: a TOML value or one of its casts, else text."""
        text = self.strip()
        token, _, rest = text.partition(" ")
        if token in _CASTS:
            try:
                return _CASTS[token](rest)
            except ValueError:
                return str(self)
        if text in ("True", "False"):
            return text == "True"
        return _toml_value(text, default=str(self))

    def as_text(self) -> str:
        """The text itself, without the quotes by which Dynaconf's users mark text as text."""
        if self.startswith("@str "):
            return self.removeprefix("@str ")
        quoted = len(self) >= 2 and self[0] == self[-1] and self[0] in "'\""
        return str(self.guess()) if quoted else str(self)

    def uncast(self) -> object:
        """The text itself, or what it is if Dynaconf's users have marked it as something."""
        return self.guess() if self.startswith(("@", "'", '"')) else self.strip()


def _json(text: str) -> object:
    import json  # noqa: PLC0415 (for those few who write @json)

    return json.loads(text)


_CASTS: Final[Mapping[str, Callable[[str], object]]] = {
    "@str": str,
    "@int": int,
    "@float": float,
    "@bool": lambda text: text.strip().lower() in ("true", "1", "yes", "on", "t", "y"),
    "@json": _json,
    "@none": lambda _: None,
    "@null": lambda _: None,
}


def _toml_value(text: str, default: str) -> object:
    if "\n" in text or "\r" in text:  # a line of its own could set anything
        return default
    import tomllib  # noqa: PLC0415 (5 ms that most starts need not pay)

    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return default
    return value if isinstance(value, bool | int | float | str | list | dict) else default


def is_null(value: object) -> bool:
    """Whether nothing is said: null in the file, or a variable that is empty."""
    if isinstance(value, EnvText):
        return value.strip() in ("", "@none", "@null")
    return value is None


def as_mapping(value: object) -> dict[str, object] | None:
    """A section as a mapping: null is an empty one, a variable may hold an inline table."""
    if is_null(value):
        return {}
    if isinstance(value, EnvText):
        value = {} if value.strip().lower() in ("null", "~") else value.guess()
    return value if isinstance(value, dict) else None


def plain(value: object) -> Any:
    """A copy in Python's own types, with a guess at what a variable's text means.

    No two places of the copy share a mapping, as YAML's aliases would have it, and what
    Dynaconf's containers compute on access is computed.
    """
    if isinstance(value, EnvText):
        return None if is_null(value) else value.guess()
    if isinstance(value, Mapping):
        return {key: plain(value[key]) for key in list(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def variables_of(value: object) -> list[str]:
    """The variables that a value comes from; none if any of it comes from elsewhere."""
    if isinstance(value, EnvText):
        return [value.variable]
    parts = [variables_of(item) for item in value.values()] if isinstance(value, dict) else []
    return [name for part in parts for name in part] if all(parts) else []


def match(known: Iterable[object], name: object) -> str | None:
    """The one of the known keys that is `name`, or is but for its case."""
    if not isinstance(name, str):
        return None
    candidates = [key for key in known if isinstance(key, str)]
    if name in candidates:
        return name
    folded = name.casefold()
    return next((key for key in candidates if key.casefold() == folded), None)


def same_key(known: Iterable[object], name: str) -> str:
    """The key under which `name` stands already; if it stands nowhere, `name` in lower case."""
    return match(known, name) or name.lower()


def join(path: str, name: str) -> str:
    """The path of the key `name` in the section at `path`."""
    return f"{path}.{name}" if path else name
