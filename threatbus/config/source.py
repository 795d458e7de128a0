"""Where the configuration comes from: the YAML file, the environment over it, and ``.env``."""

from __future__ import annotations

import importlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final

import msgspec

from threatbus.config.values import EnvText, as_mapping, is_null, plain, same_key
from threatbus.config.wording import invalid

PREFIX: Final = "THREATBUS"
"""What the names of variables begin with; two underscores stand between the levels."""

KEY_FILE_VARIABLE: Final = "THREATBUS_KEY_FILE"
"""What tells clients (`threatbus.client`) where their keys are; no setting of the bus."""

Place = tuple[str, ...]
"""The keys on the way to a setting, as a variable names them."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What `load` found: the content of the file and the variables that win over it."""

    content: Mapping[str, object]
    """The file's mapping as it stands there; empty without a file."""

    environ: Mapping[str, str]
    """All environment variables at the time of loading, those from ``.env`` included."""

    file: Path | None = None
    """The file that was read; None: there was none."""

    prefix: str = PREFIX
    """What the names of the variables that win over the file begin with."""

    def __repr__(self) -> str:
        return f"Source(file={self.file!r})"  # the rest holds passwords

    def tree(self) -> dict[str, object]:
        """The file's content with the variables over it, each still the text that it was."""
        return _merged(self.content, self.environ, self.prefix)

    def to_dynaconf(self) -> Any:
        """The same settings as a Dynaconf object, for code that wants one."""
        from threatbus.config import dynaconfs  # noqa: PLC0415 (seldom wanted)

        return dynaconfs.make(plain(self.tree()))


def load(
    path: Path | str | None = None,
    *,
    environ: MutableMapping[str, str] | None = None,
    prefix: str = PREFIX,
) -> Source:
    """Read the configuration file, the environment and ``.env`` in the current directory.

    Without `path`, ``config.yaml`` or ``config.yml`` in the current directory is read if there
    is one. What ``.env`` sets is added to `environ` (the process environment unless given)
    where it is not set yet, so that libraries find it too. An app with a configuration of its own
    has a `prefix` of its own.

    Raises InvalidConfig if a file cannot be read or is not what it should be.
    """
    environ = os.environ if environ is None else environ
    _read_dotenv(Path(".env"), environ)
    file = _default_file() if path is None else _checked_path(Path(path))
    content = {} if file is None else _read_yaml(file)
    return Source(content=content, environ=dict(environ), file=file, prefix=prefix)


def _default_file() -> Path | None:
    candidates = (Path("config.yaml"), Path("config.yml"))
    return next((path for path in candidates if path.is_file()), None)


def _checked_path(path: Path) -> Path:
    # The example is run as it stands, by `make run` and by whoever tries the bus out.
    if not path.name.lower().removesuffix(".example").endswith(("yaml", "yml")):
        raise invalid(str(path), "no YAML file by its name", "a file that ends in yaml or yml")
    return path


def _read_yaml(path: Path) -> dict[str, object]:
    text = _read_text(path)
    from threatbus.config import yaml12  # noqa: PLC0415 (a client that only logs has no file)

    return yaml12.parse(text, str(path))


def _read_dotenv(path: Path, environ: MutableMapping[str, str]) -> None:
    # The directories above are not searched: what a stranger leaves in /tmp is no setting.
    if not path.is_file():
        return
    text = _read_text(path)
    dotenv = importlib.import_module("dynaconf.vendor.dotenv")
    for name, value in dotenv.dotenv_values(stream=io.StringIO(text)).items():
        if value is not None:
            environ.setdefault(name, value)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise invalid(str(path), "not there", "an existing file") from None
    except UnicodeDecodeError as error:
        found = f"not UTF-8 (byte {error.start})"
        raise invalid(str(path), found, "a file in UTF-8") from None
    except OSError as error:
        found = f"not readable ({error.strerror})"
        raise invalid(str(path), found, "a file that this user may read") from None


# The environment: which variables are settings, and where each belongs.


def variables(environ: Mapping[str, str], prefixes: Iterable[str]) -> list[tuple[Place, EnvText]]:
    """The variables under the prefixes with their places, the shallow ones first."""
    found = []
    for prefix in prefixes:
        start = f"{prefix.upper()}_" if prefix else ""
        for variable, text in environ.items():
            place = tuple(variable.removeprefix(start).split("__"))
            if variable.startswith(start) and all(place) and variable != KEY_FILE_VARIABLE:
                found.append((place, EnvText(text, variable)))
    return sorted(found, key=lambda item: (len(item[0]), item[0]))


def _merged(
    content: Mapping[str, object], environ: Mapping[str, str], prefix: str
) -> dict[str, object]:
    """A copy of the file's content, with the variables under the prefix put over it."""
    tree: dict[str, object] = plain(content)
    for place, text in variables(environ, [prefix]):
        _put(tree, place, text)
    return tree


def _put(tree: dict[str, object], place: Place, text: EnvText) -> None:
    node = tree
    for part in place[:-1]:
        key = same_key(node, part)
        child = as_mapping(node.get(key))
        node[key] = child = {} if child is None else child
        node = child
    key = same_key(node, place[-1])
    # An empty variable switches a section on, it does not empty one that the file fills.
    if not (is_null(text) and isinstance(node.get(key), dict)):
        node[key] = text


def summed_up(warnings: Iterable[str]) -> Iterator[str]:
    """One line for all that Kubernetes sets of its own accord, the others one by one."""
    kubernetes = rf"{PREFIX}_(?!\w*__)(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT\w*|PORT(?:_\d+_\w+)?):"
    service = []
    for warning in warnings:
        if re.match(kubernetes, warning):
            service.append(warning.partition(":")[0])
        else:
            yield warning
    if service:
        names = ", ".join(service)
        yield f"variables of a Kubernetes service that are no settings have no effect: {names}"
