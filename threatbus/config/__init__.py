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

The rooms; each imports only from those above it:

============  ==========================================================================
schema        types for schemas, and the core's own schema with its defaults
values        what stands there before a schema has seen it: keys, nulls, text of variables
annotations   what a schema's field takes
wording       what messages say: what was found, what is allowed, what was probably meant
scalars       numbers, booleans and text, in quotes or not
secrets       files that secrets are read from
rules         what must hold between the settings of a section
check         a section against its schema, every error at once
yaml12        text of a file to a mapping
source        `load`: which file is read, the variables over it, ``.env``
dynaconfs     Dynaconf objects, made and read, and the validators of old plugins
whole         `read`: which plugins are configured, all of it checked, what plugins are handed
============  ==========================================================================
"""

from threatbus.config.check import check_section
from threatbus.config.rules import rule
from threatbus.config.schema import (
    FREE,
    ByteSize,
    CoreConfig,
    Host,
    LogFormat,
    LoggingConfig,
    NonNegativeInt,
    Overflow,
    PluginsConfig,
    Port,
    PositiveInt,
    QueuesConfig,
    Ratio,
    RejectedConfig,
    Seconds,
    SecondsOrZero,
    Secret,
    SecretSettings,
    Text,
    Verbosity,
    default_state_directory,
)
from threatbus.config.source import PREFIX, Source, load
from threatbus.config.values import EnvText
from threatbus.config.whole import Checked, PluginInfo, Section, read, read_core, survey
from threatbus.config.wording import describe, is_secret, nearest

__all__ = [
    "FREE",
    "PREFIX",
    "ByteSize",
    "Checked",
    "CoreConfig",
    "EnvText",
    "Host",
    "LogFormat",
    "LoggingConfig",
    "NonNegativeInt",
    "Overflow",
    "PluginInfo",
    "PluginsConfig",
    "Port",
    "PositiveInt",
    "QueuesConfig",
    "Ratio",
    "RejectedConfig",
    "Seconds",
    "SecondsOrZero",
    "Secret",
    "SecretSettings",
    "Section",
    "Source",
    "Text",
    "Verbosity",
    "check_section",
    "default_state_directory",
    "describe",
    "is_secret",
    "load",
    "nearest",
    "read",
    "read_core",
    "rule",
    "survey",
]
