"""The configuration: where it comes from, what may stand in it, and what is wrong with it.

::

    load()  ──  config.yaml + environment (+ .env)  ──▶  Source ──┐
                a Dynaconf object that an embedder built  ────────┼──▶ read() ──▶ Checked
                a plain mapping  ─────────────────────────────────┘              or InvalidConfig

The YAML file and the variables are read here, not by Dynaconf, for three reasons: in the file a
password may begin with ``@`` and must not be run as one of Dynaconf's tokens; the text of a
variable is needed as it was written (``0123`` may be a password or a port, only the schema
knows); and a daemon whose plugins all have schemas never pays for the import (170 ms, 12 MiB).
Dynaconf is imported for plugins that still check their section with its validators, and for a
``.env`` file, which it parses.
"""

from __future__ import annotations

import enum
import importlib
import io
import json
import math
import os
import re
import types
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol, Union, cast, get_args, get_origin

import msgspec

from threatbus.errors import ConfigError, InvalidConfig

PREFIX: Final = "THREATBUS"
"""What the names of variables begin with; two underscores stand between the levels."""

MIB: Final = 1024 * 1024


# --- Types for schemas. Their description is what an error message says is allowed. -----------

Port = Annotated[int, msgspec.Meta(ge=1, le=65535, description="a port between 1 and 65535")]
Seconds = Annotated[float, msgspec.Meta(gt=0, description="a number of seconds above 0")]
SecondsOrZero = Annotated[float, msgspec.Meta(ge=0, description="a number of seconds, 0 or more")]
PositiveInt = Annotated[int, msgspec.Meta(ge=1, description="a whole number above 0")]
NonNegativeInt = Annotated[int, msgspec.Meta(ge=0, description="a whole number, 0 or more")]
Ratio = Annotated[float, msgspec.Meta(ge=0, le=1, description="a number between 0 and 1")]
Text = Annotated[str, msgspec.Meta(min_length=1, description="text that is not empty")]
Host = Annotated[str, msgspec.Meta(min_length=1, description="a host name or an address")]
ByteSize = Annotated[
    int,
    msgspec.Meta(
        ge=1,
        description='a number of bytes above 0, such as 65536, "64 kB" or "256 MiB"',
        extra={"unit": "bytes"},
    ),
]
Verbosity = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
LogFormat = Literal["text", "json"]
Overflow = Literal["disconnect", "drop_oldest", "block"]


# --- The core's own schema --------------------------------------------------------------------


def default_state_directory() -> str:
    """Where state is kept: systemd's directory, else the user's own, else /var/lib/threatbus."""
    # systemd separates several directories by colons; the first is the unit's main one.
    if given := os.environ.get("STATE_DIRECTORY"):
        return given.split(":")[0]
    if base := os.environ.get("XDG_STATE_HOME"):
        return str(Path(base) / "threatbus")
    try:
        return str(Path.home() / ".local" / "state" / "threatbus")
    except RuntimeError:  # a container's user need not have a home
        return "/var/lib/threatbus"


class LoggingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The section `logging`."""

    console: bool = True
    console_verbosity: Verbosity = "INFO"
    console_format: LogFormat = "text"
    file: bool = False
    file_verbosity: Verbosity = "INFO"
    file_format: LogFormat = "text"
    filename: Text = "threatbus.log"


class PluginsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The section `plugins`: names of plugins and their sections, as yet unchecked."""

    apps: dict[str, Any] = {}
    backbones: dict[str, Any] = {}


class QueuesConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The section `queues`: bounds of inq and of each outq, and what a full outq does."""

    outq_messages: PositiveInt = 1_000_000
    outq_bytes: ByteSize = 256 * MIB
    inq_messages: PositiveInt = 100_000
    inq_bytes: ByteSize = 256 * MIB
    overflow: Overflow = "disconnect"


class RejectedConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The section `rejected`: bounds of the store of messages that the border did not let in."""

    messages: PositiveInt = 1000
    bytes: ByteSize = 16 * MIB


class CoreConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at the top level of the configuration."""

    logging: LoggingConfig = LoggingConfig()
    plugins: PluginsConfig = msgspec.field(default_factory=PluginsConfig)
    queues: QueuesConfig = QueuesConfig()
    rejected: RejectedConfig = RejectedConfig()
    snapshot_timeout: Seconds = 300.0
    drain_timeout: Seconds = 10.0
    state_directory: Text = msgspec.field(default_factory=default_state_directory)


# --- Results ----------------------------------------------------------------------------------


class PluginInfo(Protocol):
    """What `read` needs to know of an installed plugin."""

    @property
    def name(self) -> str:
        """The name of its entry point, which is that of its section."""

    @property
    def schema(self) -> type[msgspec.Struct] | None:
        """What may stand in its section; None: an old plugin, which has validators at most."""

    @property
    def validators(self) -> Sequence[Any]:
        """Dynaconf validators of the plugin, with full names (``plugins.apps.zeek.port``)."""


class Section(dict[str, Any]):
    """A mapping whose keys are also attributes, at every level."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__({key: _as_sections(value) for key, value in content.items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class Source:
    """What `load` found: the content of the file and the variables that win over it."""

    content: Mapping[str, object] = field(repr=False)
    """The file's mapping as it stands there; empty without a file."""

    environ: Mapping[str, str] = field(repr=False)
    """All environment variables at the time of loading, those from ``.env`` included."""

    file: Path | None = None
    """The file that was read; None: there was none."""

    def to_dynaconf(self) -> Any:
        """The same settings as a Dynaconf object, for code that wants one."""
        return _dynaconf(_plain(_merged(self.content, _variables(self.environ, [PREFIX]))))


@dataclass(frozen=True, repr=False)
class Checked:
    """A configuration in which nothing is wrong; holds passwords, so nothing of it is printed."""

    core: CoreConfig

    apps: Mapping[str, msgspec.Struct | None]
    """Per configured app plugin its section as a Struct; None: an old plugin without schema."""

    backbones: Mapping[str, msgspec.Struct | None]
    """The same for backbones."""

    plain_apps: Mapping[str, Any]
    """All of plugins.apps as `run(config, …)` takes it: items and attributes, defaults filled in.

    If an old plugin is among them this is Dynaconf's own kind of mapping, else a `Section`.
    """

    plain_backbones: Mapping[str, Any]
    """The same for backbones."""

    warnings: Sequence[str]
    """What the operator should know although it stops nothing, one line each."""


# --- Reading file and environment -------------------------------------------------------------


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


_CASTS: Final[Mapping[str, Callable[[str], object]]] = {
    "@str": str,
    "@int": int,
    "@float": float,
    "@bool": lambda text: text.strip().lower() in ("true", "1", "yes", "on", "t", "y"),
    "@json": json.loads,
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


def load(
    path: Path | str | None = None, *, environ: MutableMapping[str, str] | None = None
) -> Source:
    """Read the configuration file, the environment and ``.env`` in the current directory.

    Without `path`, ``config.yaml`` or ``config.yml`` in the current directory is read if there
    is one. What ``.env`` sets is added to `environ` (the process environment unless given)
    where it is not set yet, so that libraries find it too.

    Raises InvalidConfig if a file cannot be read or is not what it should be.
    """
    environ = os.environ if environ is None else environ
    _read_dotenv(Path(".env"), environ)
    file = _default_file() if path is None else _checked_path(Path(path))
    content = {} if file is None else _read_yaml(file)
    return Source(content=content, environ=dict(environ), file=file)


def _default_file() -> Path | None:
    candidates = (Path("config.yaml"), Path("config.yml"))
    return next((path for path in candidates if path.is_file()), None)


def _checked_path(path: Path) -> Path:
    if not path.name.lower().endswith(("yaml", "yml")):
        raise _invalid(str(path), "no YAML file by its name", "a file that ends in yaml or yml")
    return path


def _invalid(key: str, found: str | None, allowed: str) -> InvalidConfig:
    return InvalidConfig([ConfigError(key, found, allowed)])


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise _invalid(str(path), "not there", "an existing file") from None
    except UnicodeDecodeError as error:
        found = f"not UTF-8 (byte {error.start})"
        raise _invalid(str(path), found, "a file in UTF-8") from None
    except OSError as error:
        found = f"not readable ({error.strerror})"
        raise _invalid(str(path), found, "a file that this user may read") from None


def _read_dotenv(path: Path, environ: MutableMapping[str, str]) -> None:
    # The directories above are not searched: what a stranger leaves in /tmp is no setting.
    if not path.is_file():
        return
    text = _read_text(path)
    dotenv = importlib.import_module("dynaconf.vendor.dotenv")
    for name, value in dotenv.dotenv_values(stream=io.StringIO(text)).items():
        if value is not None:
            environ.setdefault(name, value)


def _read_yaml(path: Path) -> dict[str, object]:
    text = _read_text(path)
    import yaml  # noqa: PLC0415 (30 ms; a client that only logs has no YAML file)

    class Loader(yaml.SafeLoader):
        """YAML 1.2, as Dynaconf reads it: `yes` and `0123` are text; a key stands once."""

        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own shape)

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if key.value in seen:
                        mark = key.start_mark
                        raise _DuplicateKeyError(key.value, mark.line + 1, mark.column + 1)
                    seen.add(key.value)
            return super().construct_mapping(node, deep)

    for tag, pattern, first in _YAML_SCALARS:
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), first)
    try:
        content = _unshared(yaml.load(text, Loader))
    except _DuplicateKeyError as error:
        found = f"ambiguous: {error.name!r} stands twice, the second time at line {error.line}"
        allowed = "a mapping in which a key stands once"
        raise _invalid(str(path), f"{found}, column {error.column}", allowed) from None
    except yaml.YAMLError as error:
        found = f"broken YAML{_where(error)}"
        raise _invalid(
            str(path),
            found,
            "valid YAML; text that begins with one of @ ` % & * ! | > [ { needs quotes",
        ) from None
    except (RecursionError, ValueError) as error:
        found = f"not usable ({type(error).__name__})"
        raise _invalid(str(path), found, "YAML of moderate depth and plain values") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise _invalid(str(path), describe(content), "a mapping of settings")
    return content


_YAML_SCALARS: Final[Sequence[tuple[str, str, list[str]]]] = (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?(?:0|[1-9][0-9]{0,17})$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
    ("merge", r"^<<$", ["<"]),
)


class _DuplicateKeyError(Exception):
    def __init__(self, name: str, line: int, column: int) -> None:
        self.name = name
        self.line = line
        self.column = column
        super().__init__(name)


def _where(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
    # An unquoted password may be what the parser stumbled over.
    problem = re.sub(r"'[^']{2,}'", "'…'", str(problem))
    return f"{place} ({problem})"


def _unshared(value: object) -> object:
    """A copy in which no two places share a mapping, as YAML's aliases would have it."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unshared(item) for item in value]
    return value


# --- The environment over the file ------------------------------------------------------------

_Path = tuple[str, ...]


def _variables(environ: Mapping[str, str], prefixes: Iterable[str]) -> list[tuple[_Path, EnvText]]:
    """The variables under the prefixes with their places, the shallow ones first."""
    found = []
    for prefix in prefixes:
        start = f"{prefix.upper()}_" if prefix else ""
        for variable, text in environ.items():
            path = tuple(variable.removeprefix(start).split("__"))
            if variable.startswith(start) and all(path):
                found.append((path, EnvText(text, variable)))
    return sorted(found, key=lambda item: (len(item[0]), item[0]))


def _merged(
    content: Mapping[str, object], variables: Iterable[tuple[_Path, EnvText]]
) -> dict[str, object]:
    tree = cast("dict[str, object]", _unshared(dict(content)))
    for path, value in variables:
        _put(tree, path, value)
    return tree


def _put(tree: dict[str, object], path: _Path, value: EnvText) -> None:
    node = tree
    for part in path[:-1]:
        key = _same_key(node, part)
        child = _as_mapping(node.get(key))
        if child is None:
            child = {}
        node[key] = child
        node = child
    key = _same_key(node, path[-1])
    # An empty variable switches a section on, it does not empty one that the file fills.
    if not (_is_null(value) and isinstance(node.get(key), dict)):
        node[key] = value


def _same_key(known: Iterable[object], name: str) -> str:
    """The one of the known keys that is `name` but for its case; lower case if none is."""
    return _match(known, name) or name.lower()


def _match(known: Iterable[object], name: object) -> str | None:
    if not isinstance(name, str):
        return None
    candidates = [key for key in known if isinstance(key, str)]
    if name in candidates:
        return name
    folded = name.casefold()
    return next((key for key in candidates if key.casefold() == folded), None)


def _is_null(value: object) -> bool:
    if isinstance(value, EnvText):
        return value.strip() in ("", "@none", "@null")
    return value is None


def _as_mapping(value: object) -> dict[str, object] | None:
    """A section as a mapping: null is an empty one, a variable may hold an inline table."""
    if _is_null(value):
        return {}
    if isinstance(value, EnvText):
        value = {} if value.strip().lower() in ("null", "~") else value.guess()
    return value if isinstance(value, dict) else None


def _plain(value: object) -> Any:
    """The value in Python's own types, with a guess at what a variable's text means."""
    if isinstance(value, EnvText):
        return None if _is_null(value) else value.guess()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _as_sections(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Section(value)
    if isinstance(value, list):
        return [_as_sections(item) for item in value]
    return value


# --- Checking against a schema ----------------------------------------------------------------

_INVALID: Final = object()  # stands for a value whose error has been noted

_SECRET: Final = re.compile(
    r"passw|passphrase|secret|token|credential|(?:^|_)(?:api_?|private_?)?keys?$|(?:^|_)pass$",
    re.IGNORECASE,
)
_USER_INFO: Final = re.compile(r"://[^/@\s]+@")
_WHOLE: Final = re.compile(r"[-+]?[0-9]{1,18}")
_NUMBER: Final = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")
_SIZE: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_TRUE: Final = ("true", "yes", "on", "1")
_FALSE: Final = ("false", "no", "off", "0")
_LONGEST_SHOWN: Final = 60  # characters of a wrong value
_MOST_LISTED: Final = 16  # known keys in one message


def is_secret(path: str) -> bool:
    """Whether the name of a setting says that its value must not be shown."""
    return any(_SECRET.search(part) for part in path.split("."))


def describe(value: object, path: str = "") -> str:
    """What was found, in words; not the value itself where `path` names a secret."""
    origin = f" (from {value.variable})" if isinstance(value, EnvText) else ""
    if value is None or (origin and not value):
        return f"empty{origin}"
    if isinstance(value, dict):
        return f"a mapping{origin}"
    if isinstance(value, list | tuple):
        return f"a list{origin}"
    kinds = {bool: "boolean", int: "number", float: "number", str: "text"}
    kind = next((word for base, word in kinds.items() if isinstance(value, base)), "value")
    if is_secret(path):
        return f"a {kind} that is not shown{origin}"
    shown = _USER_INFO.sub("://***@", str(value))
    if len(shown) > _LONGEST_SHOWN:
        shown = shown[:_LONGEST_SHOWN] + "…"
    if isinstance(value, bool):
        shown = shown.lower()
    return f"the {kind} {shown!r}{origin}" if kind == "text" else f"the {kind} {shown}{origin}"


def check_section(
    value: object, schema: type[msgspec.Struct], path: str, warnings: list[str] | None = None
) -> tuple[msgspec.Struct | None, list[ConfigError]]:
    """Convert a section to its Struct, or say everything that is wrong with it.

    `path` is where the section stands (``plugins.apps.zmq``). Keys match in any case. Numbers
    and booleans may stand in quotes. A null section, or a null where there is a default, means
    the default. A ValueError from the Struct's ``__post_init__`` becomes an error of the whole
    section. Unknown keys from the environment are no errors but go to `warnings`.
    Not supported in a schema: tagged unions of Structs, tuples of several types.
    """
    checker = _Checker()
    result = checker.struct(value, schema, path)
    if warnings is not None:
        warnings.extend(checker.warnings)
    if checker.errors or not isinstance(result, msgspec.Struct):
        return None, checker.errors
    return result, []


class _Checker:
    """Converts values by their annotation and gathers what is wrong instead of stopping."""

    def __init__(self) -> None:
        self.errors: list[ConfigError] = []
        self.warnings: list[str] = []

    def struct(self, value: object, schema: type[msgspec.Struct], path: str) -> object:
        """The section as `schema`, or _INVALID."""
        fields = {each.encode_name: each for each in msgspec.structs.fields(schema)}
        given = self._known(value, list(fields), path)
        if given is None:
            return _INVALID
        before = len(self.errors)
        arguments: dict[str, object] = {}
        for name, setting in fields.items():
            where = _join(path, name)
            if name not in given:
                if setting.required:
                    self.errors.append(ConfigError(where, None, allowed(setting.type)))
            elif setting.required or _admits_null(setting.type) or not _is_null(given[name]):
                arguments[setting.name] = self.value(given[name], setting.type, where)
        if len(self.errors) > before:
            return _INVALID
        return self._build(schema, arguments, path)

    def _known(self, value: object, names: Sequence[str], path: str) -> dict[str, object] | None:
        """The section's items under their proper names; notes the unknown ones."""
        mapping = _as_mapping(value)
        if mapping is None:
            self.wrong(value, f"a section with {_listed(names, 'any', 'of the keys ')}", path)
            return None
        given: dict[str, object] = {}
        for key, item in mapping.items():
            name = _match(names, key)
            if name is None:
                self._unknown(key, item, names, path)
            elif name in given:
                self.errors.append(
                    ConfigError(_join(path, name), f"there twice, also as {key}", "there once")
                )
            else:
                given[name] = item
        return given

    def _unknown(self, key: object, item: object, names: Sequence[str], path: str) -> None:
        hint = nearest(str(key), names)
        where = _join(path, str(key))
        variables = _origins(item)
        if variables is None:
            known = _listed(names, "one", "of ")
            self.errors.append(ConfigError(where, "not a known key", known, hint))
            return
        meant = f"; did you mean {_join(path, hint)}?" if hint else ""
        self.warnings.extend(
            f"{variable}: {where} is not a known key, the variable has no effect{meant}"
            for variable in variables
        )

    def _build(
        self, schema: type[msgspec.Struct], arguments: dict[str, object], path: str
    ) -> object:
        try:
            return schema(**arguments)
        except ConfigError as error:
            self.errors.append(error)
        except InvalidConfig as error:
            self.errors.extend(error.errors)
        except (ValueError, TypeError) as error:
            found = f"contradictory ({error})"
            self.errors.append(ConfigError(path, found, "a section whose settings fit together"))
        return _INVALID

    def wrong(self, value: object, what: str, path: str) -> object:
        """Note that `value` is not `what` it must be."""
        self.errors.append(ConfigError(path, describe(value, path), what))
        return _INVALID

    def value(self, value: object, annotation: Any, path: str) -> object:
        """The value as the annotation has it, or _INVALID."""
        base, metas = _unwrap(annotation)
        origin = get_origin(base)
        if base in (object, Any):
            return _plain(value)
        if origin in (Union, types.UnionType):
            return self._union(value, base, annotation, path)
        if isinstance(base, type) and issubclass(base, msgspec.Struct):
            return self.struct(value, base, path)
        if base is dict or origin is dict:
            return self._mapping(value, base, annotation, path)
        if base in _SEQUENCES or origin in _SEQUENCES:
            return self._sequence(value, base, annotation, path)
        if origin is Literal or (isinstance(base, type) and issubclass(base, enum.Enum)):
            return self._choice(value, base, annotation, path)
        return self._scalar(value, base, metas, annotation, path)

    def _union(self, value: object, union: Any, annotation: Any, path: str) -> object:
        members = [member for member in get_args(union) if member is not type(None)]
        if _is_null(value) and len(members) < len(get_args(union)):
            return None
        if len(members) == 1:
            return self.value(value, members[0], path)
        # First the member of the value's own shape, so that its errors name the very place.
        shape = _plain(value)
        for member in sorted(members, key=lambda member: not _fits(shape, member)):
            attempt = _Checker()
            result = attempt.value(value, member, path)
            if not attempt.errors or (_fits(shape, member) and isinstance(shape, dict | list)):
                self.errors.extend(attempt.errors)
                self.warnings.extend(attempt.warnings)
                return result
        return self.wrong(value, allowed(annotation), path)

    def _mapping(self, value: object, base: Any, annotation: Any, path: str) -> object:
        mapping = _as_mapping(value)
        if mapping is None:
            return self.wrong(value, allowed(annotation), path)
        key_type, item_type = get_args(base) or (object, object)
        return {
            self.value(key, key_type, path): self.value(item, item_type, _join(path, str(key)))
            for key, item in mapping.items()
        }

    def _sequence(self, value: object, base: Any, annotation: Any, path: str) -> object:
        items = value.guess() if isinstance(value, EnvText) else value
        if not isinstance(items, list | tuple) or not _length_is_allowed(items, annotation):
            return self.wrong(value, allowed(annotation), path)
        item_type = (get_args(base) or (object,))[0]
        before = len(self.errors)
        converted = [
            self.value(item, item_type, f"{path}[{index}]") for index, item in enumerate(items)
        ]
        kind = get_origin(base) or base
        return kind(converted) if len(self.errors) == before else _INVALID

    def _choice(self, value: object, base: Any, annotation: Any, path: str) -> object:
        choices = _choices(base)
        given = value.as_text() if isinstance(value, EnvText) else value
        for written, choice in choices.items():
            if isinstance(given, str) and str(written).casefold() == given.strip().casefold():
                return choice
            if given == written and isinstance(given, bool) == isinstance(written, bool):
                return choice
        return self.wrong(value, allowed(annotation), path)

    def _scalar(
        self, value: object, base: Any, metas: Sequence[msgspec.Meta], annotation: Any, path: str
    ) -> object:
        is_size = any((meta.extra or {}).get("unit") == "bytes" for meta in metas)
        convert = _size if is_size else _SCALARS.get(base, _as_is)
        given = value
        if isinstance(value, EnvText):
            given = value.as_text() if base is str else _uncast(value)
        try:
            # The types of this module's own choosing are converted above; the bounds of all,
            # and types such as datetime.timedelta, are msgspec's matter.
            return msgspec.convert(convert(given), annotation, strict=False)
        except (msgspec.ValidationError, ValueError, OverflowError, TypeError):
            what = allowed(annotation)
            if base is str and isinstance(value, bool | float):
                what += "; text that looks like something else needs quotes"
            return self.wrong(value, what, path)


_SEQUENCES: Final = (list, tuple, set, frozenset)


def _uncast(value: EnvText) -> object:
    """The variable's text, or what one of Dynaconf's casts makes of it."""
    return value.guess() if value.startswith(("@", "'", '"')) else str(value).strip()


def _as_is(value: object) -> object:
    return value


def _bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _TRUE + _FALSE:
        return value.strip().lower() in _TRUE
    raise ValueError


def _int(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value)
    raise ValueError


def _float(value: object) -> float:
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ValueError


def _str(value: object) -> str:
    # A whole number reads the same written out (YAML 1.2 takes `0123` for text); what a float
    # looked like in the file cannot be told.
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise ValueError


def _size(value: object) -> int:
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        number, letter, binary = match.groups()
        if binary and not letter:
            raise ValueError
        power = " kmgt".index(letter.lower() or " ")
        return int(float(number) * (1024 if binary else 1000) ** power)
    return _int(value)


_SCALARS: Final[Mapping[Any, Callable[[object], object]]] = {
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
}


def allowed(annotation: Any) -> str:
    """What a setting of this type may be, in words."""
    base, metas = _unwrap(annotation)
    for meta in metas:
        if meta.description:
            return meta.description
    origin, arguments = get_origin(base), get_args(base)
    if origin in (Union, types.UnionType):
        members = [allowed(member) for member in arguments if member is not type(None)]
        return " or ".join(members) + (" or empty" if type(None) in arguments else "")
    if origin is Literal or (isinstance(base, type) and issubclass(base, enum.Enum)):
        return f"one of {', '.join(str(choice) for choice in _choices(base))}"
    if base in _SEQUENCES or origin in _SEQUENCES:
        items = "" if not arguments or arguments[0] is object else f" of {allowed(arguments[0])}"
        return f"a list{items}"
    if base is dict or origin is dict:
        return "a mapping"
    if isinstance(base, type) and issubclass(base, msgspec.Struct):
        keys = [each.encode_name for each in msgspec.structs.fields(base)]
        return f"a section with {_listed(keys, 'any', 'of the keys ')}"
    name = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(base)
    return (name or f"a {getattr(base, '__name__', base)}") + _bounds(metas)


def _bounds(metas: Iterable[msgspec.Meta]) -> str:
    limits = [
        (words, limit)
        for meta in metas
        for words, limit in (
            ("of at least", meta.ge),
            ("above", meta.gt),
            ("of at most", meta.le),
            ("below", meta.lt),
            ("with a length of at least", meta.min_length),
            ("with a length of at most", meta.max_length),
            ("that matches", meta.pattern),
        )
        if limit is not None
    ]
    return " " + " and ".join(f"{words} {limit}" for words, limit in limits) if limits else ""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a mistyped one probably meant."""
    import difflib  # noqa: PLC0415 (11 ms that only a mistake costs)

    folded = {key.casefold().replace("-", "_"): key for key in known}
    close = difflib.get_close_matches(name.casefold().replace("-", "_"), list(folded), n=1)
    return folded[close[0]] if close else None


def _listed(names: Sequence[str], one: str, of: str) -> str:
    if not names:
        return "no key at all"
    if len(names) > _MOST_LISTED:
        return f"{one} {of}{', '.join(names[:_MOST_LISTED])}, …"
    return f"{one} {of}{', '.join(names)}"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _origins(value: object) -> list[str] | None:
    """The variables that a value comes from; None if any of it comes from elsewhere."""
    if isinstance(value, EnvText):
        return [value.variable]
    if not isinstance(value, dict) or not value:
        return None
    variables: list[str] = []
    for item in value.values():
        more = _origins(item)
        if more is None:
            return None
        variables += more
    return variables


def _unwrap(annotation: Any) -> tuple[Any, list[msgspec.Meta]]:
    metas: list[msgspec.Meta] = []
    while get_origin(annotation) is Annotated:
        annotation, *extras = get_args(annotation)
        metas += [extra for extra in extras if isinstance(extra, msgspec.Meta)]
    return annotation, metas


def _admits_null(annotation: Any) -> bool:
    base, _ = _unwrap(annotation)
    return base in (object, Any, None) or type(None) in get_args(base)


def _fits(value: object, annotation: Any) -> bool:
    """Whether the value is of this type's shape without any conversion."""
    base, _ = _unwrap(annotation)
    if isinstance(value, dict):
        return (
            base is dict
            or get_origin(base) is dict
            or (isinstance(base, type) and issubclass(base, msgspec.Struct))
        )
    if isinstance(value, list):
        return base in _SEQUENCES or get_origin(base) in _SEQUENCES
    if isinstance(value, bool) or base is bool:
        return isinstance(value, bool) and base is bool
    return isinstance(base, type) and isinstance(value, base)


def _length_is_allowed(items: Sequence[object], annotation: Any) -> bool:
    return all(
        (meta.min_length or 0) <= len(items)
        and (meta.max_length is None or len(items) <= meta.max_length)
        for meta in _unwrap(annotation)[1]
    )


def _choices(base: Any) -> dict[object, object]:
    """What may be written, and what it stands for."""
    if get_origin(base) is Literal:
        return {choice: choice for choice in get_args(base)}
    return {member.value: member for member in base}


# --- The whole configuration ------------------------------------------------------------------


def read(
    source: Any,
    installed_apps: Mapping[str, PluginInfo],
    installed_backbones: Mapping[str, PluginInfo],
) -> Checked:
    """Check a whole configuration against the core's schema and those of the installed plugins.

    `source` comes from `load`, or is a Dynaconf object that someone else built, or a mapping.
    Raises InvalidConfig with every error at once.
    """
    tree = _tree(source)
    checker = _Checker()
    core = checker.struct(tree, CoreConfig, "")
    groups = {"apps": installed_apps, "backbones": installed_backbones}
    # Which plugins are configured is settled here: a validator's default, further down, can
    # create the section of a plugin that nobody asked for.
    sections = {group: _sections(tree, group, groups, checker) for group in groups}
    structs = {
        group: {
            name: _struct_of(value, groups[group][name], f"plugins.{group}.{name}", checker)
            for name, value in configured.items()
        }
        for group, configured in sections.items()
    }
    plain = _run_validators(core, sections, groups, checker)
    if _group(tree, "backbones") == {}:
        checker.errors.append(_no_backbone(source))
    if _group(tree, "apps") == {}:
        checker.warnings.append("plugins.apps: no app plugin is configured, nobody can take part")
    if checker.errors or not isinstance(core, CoreConfig):
        raise InvalidConfig(checker.errors)
    return Checked(
        core=core,
        apps=structs["apps"],
        backbones=structs["backbones"],
        plain_apps=_for_run(plain["apps"], structs["apps"]),
        plain_backbones=_for_run(plain["backbones"], structs["backbones"]),
        warnings=tuple(_unnoisy(checker.warnings)),
    )


_Sections = Mapping[str, Mapping[str, object]]
_Groups = Mapping[str, Mapping[str, PluginInfo]]


def _group(tree: Mapping[str, object], group: str) -> dict[str, object] | None:
    """The sections of a group; None if what stands there is no mapping."""
    plugins = _as_mapping(tree.get(_same_key(tree, "plugins")))
    return None if plugins is None else _as_mapping(plugins.get(_same_key(plugins, group)))


def _sections(
    tree: Mapping[str, object], group: str, groups: _Groups, checker: _Checker
) -> dict[str, object]:
    """The configured plugins of a group under their proper names; notes those not installed."""
    found: dict[str, object] = {}
    for key, value in (_group(tree, group) or {}).items():
        name = _match(groups[group], key)
        where = f"plugins.{group}.{key}"
        if name is None:
            checker.errors.append(_not_installed(str(key), where, group, groups, value))
        elif name in found:
            checker.errors.append(ConfigError(where, f"there twice, also as {name}", "there once"))
        elif _as_mapping(value) is None:
            checker.wrong(value, "a section of settings, or empty for the defaults", where)
        else:
            found[name] = value
    return found


def _not_installed(
    name: str, where: str, group: str, groups: _Groups, value: object
) -> ConfigError:
    variables = _origins(value)
    origin = f" (set by {', '.join(variables)})" if variables else ""
    if other := next((each for each in groups if each != group and _match(groups[each], name)), ""):
        kind = f"none of the {group}{origin}"
        return ConfigError(where, kind, "in its own place", f"plugins.{other}.{name}")
    installed = sorted(groups[group])
    close = nearest(name, installed)
    choice = f"one of the installed ones ({', '.join(installed)})" if installed else "installed"
    return ConfigError(
        where,
        f"a plugin that is not installed{origin}",
        f"{choice}; try `pip install threatbus-{name}`",
        close and f"plugins.{group}.{close}",
    )


def _no_backbone(source: object) -> ConfigError:
    what = "at least one backbone; `inmem:` is the one for a bus on one machine"
    if isinstance(source, Source) and source.file is None and not source.content:
        what += " (there is no config.yaml or config.yml in the current directory)"
    return ConfigError("plugins.backbones", None, what)


def _struct_of(
    value: object, plugin: PluginInfo, path: str, checker: _Checker
) -> msgspec.Struct | None:
    schema = plugin.schema  # asked for once: the answer may come from a hook
    if schema is None:
        return None
    result = checker.struct(value, schema, path)
    return result if isinstance(result, msgspec.Struct) else None


def _for_run(
    plain: Mapping[str, Any], structs: Mapping[str, msgspec.Struct | None]
) -> Mapping[str, Any]:
    """What plugins are handed: of new ones the checked values, of old ones what they wrote."""
    content = {
        name: plain[name] if struct is None else msgspec.to_builtins(struct)
        for name, struct in structs.items()
    }
    if None not in structs.values():
        return Section(content)
    # An old plugin has most likely imported it anyway.
    return cast("Mapping[str, Any]", importlib.import_module("dynaconf.nodes").DataDict(content))


def _unnoisy(warnings: Iterable[str]) -> Iterable[str]:
    """One line for all that Kubernetes sets of its own accord, the others one by one."""
    service = []
    for warning in warnings:
        if _KUBERNETES.match(warning):
            service.append(warning.partition(":")[0])
        else:
            yield warning
    if service:
        names = ", ".join(service)
        yield f"variables of a Kubernetes service that are no settings have no effect: {names}"


_KUBERNETES: Final = re.compile(
    rf"{PREFIX}_(?!\w*__)(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT\w*|PORT(?:_\d+_\w+)?):"
)


# --- Dynaconf: old plugins' validators, and objects that embedders built ------------------------


def _dynaconf(tree: Mapping[str, Any]) -> Any:
    """A Dynaconf object with exactly this content, which looks for nothing anywhere."""
    settings = importlib.import_module("dynaconf").Dynaconf(
        # Without this, PRELOAD_FOR_DYNACONF in the environment names a file to run.
        dynaconf_skip_loaders=True,
        load_dotenv=False,
        environments=False,
        dotted_lookup=True,  # a default that nobody has loaded
        auto_cast=False,  # else a password that begins with @ is taken for a command
    )
    for key, value in tree.items():
        settings.set(key, value)
    return settings


def _run_validators(
    core: object, sections: _Sections, groups: _Groups, checker: _Checker
) -> dict[str, dict[str, Any]]:
    """The configured sections as plain values, with the defaults that old validators set."""
    plain: dict[str, dict[str, Any]] = {
        group: {name: _plain(_as_mapping(value)) for name, value in configured.items()}
        for group, configured in sections.items()
    }
    validators = [
        validator
        for group, configured in sections.items()
        for name in configured
        for validator in groups[group][name].validators
    ]
    if not validators:
        return plain
    # A validator may look at what the core's settings are, too.
    others = msgspec.to_builtins(core) if isinstance(core, CoreConfig) else {}
    settings = _dynaconf({**others, "plugins": plain})
    for validator in validators:
        _run_validator(validator, settings, checker)
    return cast("dict[str, dict[str, Any]]", _foreign(settings.get("plugins")))


def _run_validator(validator: Any, settings: Any, checker: _Checker) -> None:
    # Each alone: `validate_all` is ended by an exception of its own kind only, and a plugin's
    # condition may raise any.
    try:
        validator.validate(settings)
    except Exception as error:  # noqa: BLE001 (it is the plugin's code)
        names = _validator_names(validator)
        reason = str(error) or type(error).__name__
        found: str | None = None
        for name in names:
            value = _looked_up(settings, name)
            if value is not None:
                found = describe(value, name)
            if value is not None and is_secret(name):
                reason = reason.replace(repr(value), "***").replace(str(value), "***")
        key = ", ".join(names) or "plugins"
        checker.errors.append(ConfigError(key, found, f"what its plugin accepts: {reason}"))


def _validator_names(validator: Any) -> list[str]:
    """The settings that a validator, or a combination of several, looks at."""
    parts = getattr(validator, "validators", None)
    if parts:
        return list(dict.fromkeys(name for part in parts for name in _validator_names(part)))
    return [str(name) for name in validator.names]


def _looked_up(settings: Any, name: str) -> object:
    try:
        return _foreign(settings.get(name))
    except AttributeError:  # a step on the way is no mapping
        return None


# What an embedder may say to Dynaconf and finds again among its settings.
_DYNACONF_OPTIONS: Final = re.compile(
    r"LOAD_DOTENV|SETTINGS_MODULE|FRESH(_VARS)?|POST_HOOKS|FILTER_STRATEGY|DYNABOXIFY"
    r"|VALIDATE_(ONLY(_CURRENT_ENV)?|EXCLUDE)|.*_FOR_DYNACONF|DYNACONF_.*"
)


def _tree(source: Any) -> dict[str, object]:
    """The content of any kind of source, with variables marked as such."""
    kind = type(source)  # `isinstance` would make a Dynaconf object load, too early to catch it
    if issubclass(kind, Source):
        return _merged(source.content, _variables(source.environ, [PREFIX]))
    if issubclass(kind, Mapping):
        return cast("dict[str, object]", _foreign(source))
    try:
        content = _foreign(source.as_dict())
        prefix = source.get("ENVVAR_PREFIX_FOR_DYNACONF")
    except Exception as error:
        # Dynaconf loads only now, so this may be anything that its loaders raise.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _invalid("configuration", f"not loadable ({reason})", "valid") from error
    # As Dynaconf has it: None is no variable at all, False is every variable.
    prefixes = [] if prefix is None else [*str(prefix or "").split(","), "DYNACONF"]
    return _marked(content, _variables(os.environ, dict.fromkeys(prefixes)))


def _foreign(value: object) -> Any:
    """Dynaconf's containers as Python's own, with what they compute on access computed."""
    if isinstance(value, Mapping):
        return {key: _foreign(value[key]) for key in list(value)}
    if isinstance(value, list | tuple):
        return [_foreign(item) for item in value]
    return value


def _marked(
    content: Mapping[str, object], variables: Iterable[tuple[_Path, EnvText]]
) -> dict[str, object]:
    """A foreign object's content, with keys as a file has them and origins where they show."""
    tree: dict[str, object] = {
        key.lower(): value for key, value in content.items() if not _DYNACONF_OPTIONS.fullmatch(key)
    }
    for path, text in variables:
        _mark(tree, path, text)
    return tree


def _mark(tree: dict[str, object], path: _Path, text: EnvText) -> None:
    node: object = tree
    for depth, part in enumerate(path):
        key = _match(node, part) if isinstance(node, dict) else None
        if key is None or not isinstance(node, dict):
            return
        if key == part and key.isupper():  # nobody but the variable wrote it
            node[key.lower()] = node.pop(key)
            key = key.lower()
        # A value that was changed after loading is no longer the variable's.
        if depth == len(path) - 1 and node[key] in (text.guess(), str(text)):
            node[key] = text
        node = node[key]
