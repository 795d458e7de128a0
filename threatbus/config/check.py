"""Checking a section against its schema: one pass that gathers all that is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from threatbus.config.annotations import (
    admits_null,
    arguments,
    bare,
    choices,
    fits,
    is_marked,
    keys,
    kind,
    length_is_allowed,
    members,
    shape,
)
from threatbus.config.rules import WRONG, Partial, errors_of, is_wrong
from threatbus.config.scalars import to_scalar
from threatbus.config.secrets import FILE_SUFFIX, SecretFileError, files_of, is_readable_by_all
from threatbus.config.secrets import read as read_secret
from threatbus.config.values import EnvText, as_mapping, is_null, join, match, plain, variables_of
from threatbus.config.wording import allowed, describe, is_secret, listed, nearest
from threatbus.errors import ConfigError

SchemaT = TypeVar("SchemaT", bound=msgspec.Struct)


def check_section(
    value: object, schema: type[SchemaT], path: str, warnings: list[str] | None = None
) -> tuple[SchemaT | None, list[ConfigError]]:
    """Convert a section to its Struct, or say everything that is wrong with it.

    `path` is where the section stands (``plugins.apps.zmq``). Keys match in any case. Numbers
    and booleans may stand in quotes. A null section, or a null where there is a default, means
    the default. What settings must be to each other say the schema's rules
    (`threatbus.config.rule`). Unknown keys from the environment are no errors but go to `warnings`.
    Not supported in a schema: tagged unions of Structs, tuples of several types.
    """
    checker = Checker()
    section = checker.section(value, schema, path)
    if warnings is not None:
        warnings.extend(checker.warnings)
    return (None if checker.errors else section), checker.errors


class Checker:
    """Converts values by their annotation and gathers what is wrong instead of stopping.

    What could not be converted is `WRONG`, a section of which not all could be a `Partial`; whether
    anything was wrong, `errors` says.
    """

    def __init__(self) -> None:
        self.errors: list[ConfigError] = []
        self.warnings: list[str] = []

    def section(self, value: object, schema: type[SchemaT], path: str) -> SchemaT | None:
        """The section as `schema`; None if anything is wrong with it."""
        before = len(self.errors)
        section = self._section(value, schema, path)
        return section if isinstance(section, schema) and len(self.errors) == before else None

    def _section(self, value: object, schema: type[SchemaT], path: str) -> object:
        files = files_of(schema)
        given = self._known(value, [*keys(schema), *files], path)
        if given is None:
            return WRONG
        self._read_files(given, files, path)
        settings: dict[str, object] = {}
        for each in msgspec.structs.fields(schema):
            name, where = each.encode_name, join(path, each.encode_name)
            if name not in given:
                if each.required:
                    self.errors.append(ConfigError(where, None, allowed(each.type)))
                    settings[each.name] = WRONG
            elif each.required or admits_null(each.type) or not is_null(given[name]):
                settings[each.name] = self.value(given[name], each.type, where)
        return self._built(schema, settings, path)

    def _built(self, schema: type[SchemaT], settings: dict[str, object], path: str) -> object:
        """The section of these settings, held against its rules."""
        section = Partial(schema, settings)
        self.errors.extend(section.broken_rules(path))
        if not section.is_complete():
            return section
        built: list[SchemaT] = []
        # A schema may have a ``__post_init__``, too, which needs all of its settings to be right.
        self.errors.extend(errors_of(lambda: built.append(schema(**settings)), path))
        return built[0] if built else section

    def _known(self, value: object, names: Sequence[str], path: str) -> dict[str, object] | None:
        """The section's items under their proper names; notes the unknown ones."""
        mapping = as_mapping(value)
        if mapping is None:
            self.wrong(value, f"a section with {listed(names, 'any', 'of the keys ')}", path)
            return None
        given: dict[str, object] = {}
        for key, item in mapping.items():
            name = match(names, key)
            if name is None:
                self._unknown(key, item, names, path)
            elif name in given:
                twice = f"there twice, also as {key}"
                self.errors.append(ConfigError(join(path, name), twice, "there once"))
                given[name] = WRONG
            else:
                given[name] = item
        return given

    def _read_files(self, given: dict[str, object], files: Mapping[str, str], path: str) -> None:
        """Put the content of files in the place of the keys that name them."""
        for key in [key for key in files if key in given]:
            name, where = files[key], join(path, key)
            file = given.pop(key)
            if is_null(file):
                continue
            if name in given and not is_null(given[name]):
                twice = f"there twice, also as {key}"
                self.errors.append(ConfigError(join(path, name), twice, "there once"))
                given[name] = WRONG
                continue
            try:
                text = str(to_scalar(file, str))
                given[name] = read_secret(text)
            except ValueError as error:
                # What is no path at all may be the secret.
                found = str(error) if isinstance(error, SecretFileError) else "no path of a file"
                self.errors.append(ConfigError(where, found, "a file that holds the secret"))
                given[name] = WRONG
                continue
            if is_readable_by_all(text):
                self.warnings.append(
                    f"{where}: every user of this machine can read the file; chmod 600 it"
                )

    def _unknown(self, key: object, item: object, names: Sequence[str], path: str) -> None:
        hint = nearest(str(key), names)
        where = join(path, str(key))
        variables = variables_of(item)
        if not variables:
            known = listed(names, "one", "of ")
            self.errors.append(ConfigError(where, "not a known key", known, hint))
        meant = f"; did you mean {join(path, hint)}?" if hint else ""
        self.warnings.extend(
            f"{variable}: {where} is not a known key, the variable has no effect{meant}"
            for variable in variables
        )

    def wrong(self, value: object, what: str, path: str) -> object:
        """Note that `value` is not `what` it must be; gives `WRONG` for it."""
        self.errors.append(ConfigError(path, describe(value, path), what))
        return WRONG

    def value(self, value: object, annotation: Any, path: str) -> object:
        """The value as the annotation has it."""
        if value is WRONG:
            return WRONG
        match shape(annotation):
            case "anything":
                return plain(value)
            case "union":
                return self._union(value, annotation, path)
            case "section":
                return self._section(value, bare(annotation), path)
            case "mapping":
                return self._mapping(value, annotation, path)
            case "sequence":
                return self._sequence(value, annotation, path)
            case "choice":
                return self._choice(value, annotation, path)
            case "scalar":
                return self._scalar(value, annotation, path)

    def _union(self, value: object, annotation: Any, path: str) -> object:
        candidates = members(annotation)
        if is_null(value) and len(candidates) < len(arguments(annotation)):
            return None
        if len(candidates) == 1:
            return self.value(value, candidates[0], path)
        # First the member of the value's own shape, so that its errors name the very place.
        content = plain(value)
        for member in sorted(candidates, key=lambda member: not fits(content, member)):
            attempt = Checker()
            result = attempt.value(value, member, path)
            if not attempt.errors or (isinstance(content, dict | list) and fits(content, member)):
                self.errors.extend(attempt.errors)
                self.warnings.extend(attempt.warnings)
                return result
        return self.wrong(value, allowed(annotation), path)

    def _mapping(self, value: object, annotation: Any, path: str) -> object:
        mapping = as_mapping(value)
        if mapping is None:
            return self.wrong(value, allowed(annotation), path)
        if is_marked(annotation, "secret_files"):
            files = {key: key.removesuffix(FILE_SUFFIX) for key in map(str, mapping)}
            files = {key: name for key, name in files.items() if key != name and is_secret(name)}
            mapping = dict(mapping)
            self._read_files(mapping, files, path)
        key_type, item_type = arguments(annotation) or (object, object)
        converted = {
            self.value(key, key_type, path): self.value(item, item_type, join(path, str(key)))
            for key, item in mapping.items()
        }
        return WRONG if any(map(is_wrong, [*converted, *converted.values()])) else converted

    def _sequence(self, value: object, annotation: Any, path: str) -> object:
        items = value.guess() if isinstance(value, EnvText) else value
        if not isinstance(items, list | tuple) or not length_is_allowed(items, annotation):
            return self.wrong(value, allowed(annotation), path)
        item_type = (arguments(annotation) or (object,))[0]
        converted = [
            self.value(item, item_type, f"{path}[{index}]") for index, item in enumerate(items)
        ]
        return WRONG if any(map(is_wrong, converted)) else kind(annotation)(converted)

    def _choice(self, value: object, annotation: Any, path: str) -> object:
        given = value.as_text() if isinstance(value, EnvText) else value
        for written, choice in choices(annotation).items():
            if isinstance(given, str) and str(written).casefold() == given.strip().casefold():
                return choice
            if given == written and isinstance(given, bool) == isinstance(written, bool):
                return choice
        return self.wrong(value, allowed(annotation), path)

    def _scalar(self, value: object, annotation: Any, path: str) -> object:
        try:
            # The types of our own choosing are converted first; the bounds of all, and types
            # such as datetime.timedelta, are msgspec's matter.
            return msgspec.convert(to_scalar(value, annotation), annotation, strict=False)
        except (msgspec.ValidationError, ValueError, OverflowError, TypeError):
            what = allowed(annotation)
            if bare(annotation) is str and isinstance(value, bool | float):
                what += "; text that looks like something else needs quotes"
            if is_marked(annotation, "secret"):
                self.errors.append(ConfigError(path, "a value that is not shown", what))
                return WRONG
            return self.wrong(value, what, path)
