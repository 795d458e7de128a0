"""The section ``plugins.apps.misp``: one MISP, or several under ``instances``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec

from threatbus.config import (
    Host,
    NonNegativeInt,
    Port,
    Seconds,
    SecondsOrZero,
    Secret,
    SecretSettings,
    Text,
    rule,
)
from threatbus.errors import ConfigError, InvalidConfig

SECTION: Final = "plugins.apps.misp"

Days = Annotated[float, msgspec.Meta(ge=0, description="a number of days, or 0")]
ThreatLevel = Annotated[
    int, msgspec.Meta(ge=1, le=4, description="1 (high), 2 (medium), 3 (low) or 4 (any)")
]


class ApiConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The section ``api``: MISP's REST API. Without a key it is not used."""

    host: Text = "https://localhost"
    """MISP's address."""
    ssl: bool | Text = True
    """Whether its certificate is checked, or the file with the certificates to trust."""
    key: Secret = ""
    """The key of the user that the bus is to MISP."""
    timeout: Seconds = 30.0
    """Seconds that MISP may take for an answer."""

    @rule
    def host_is_an_address_where_it_is_used(self) -> None:
        """Raise `ConfigError` for one that is none."""
        if self.key and not _is_web_address(self.host):
            # Which may hold a password, so it is not shown.
            allowed = "http:// or https:// and the name of a host"
            raise ConfigError("host", "no address of the web", allowed)

    @rule
    def certificates_are_there(self) -> None:
        """Raise `ConfigError` for a file that is not."""
        if isinstance(self.ssl, str) and not Path(self.ssl).exists():
            allowed = "true, false, or a file (or directory) that is there"
            raise ConfigError("ssl", repr(self.ssl), allowed)


class FilterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One filter: within a list any value will do, and each list that is there has to match."""

    orgs: list[str | int] = []
    """Organisations that created the event: id, name or UUID."""
    types: list[str] = []
    """Types of attributes."""
    tags: list[str] = []
    """Tags of the attribute or of its event."""


class ZmqConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The section ``zmq``: MISP's ZeroMQ publisher."""

    host: Host = "localhost"
    """Where it listens."""
    port: Port = 50000
    """Its port."""
    username: str = ""
    """User name, if MISP asks for one (PLAIN)."""
    password: Secret = ""
    """Password of `username`."""
    silence: Seconds = 60.0
    """Seconds without a sign of life, one of which comes every 10 s, that count as a gap."""


class KafkaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The section ``kafka``: the Kafka that MISP publishes to."""

    topics: list[Text] = []
    """Topics that MISP writes; at least one."""
    poll_interval: Seconds = 1.0
    """Seconds that one poll waits at most."""
    config: SecretSettings = {}
    """Settings of librdkafka, passed on as they are; offsets are committed by the bus."""

    @rule
    def has_topics(self) -> None:
        """Raise `ConfigError` for a Kafka from which nothing would come."""
        if not self.topics:
            raise ConfigError("topics", "empty", "topics that MISP writes")


class SightingsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The section ``sightings``: those that the bus reports to MISP."""

    enabled: bool = True
    """Whether sightings on the bus are reported to MISP."""
    by_value: bool = False
    """Whether one of no known attribute marks every attribute of its value."""


class InstanceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One MISP."""

    api: ApiConfig = ApiConfig()
    zmq: ZmqConfig | None = None
    kafka: KafkaConfig | None = None
    sightings: SightingsConfig = SightingsConfig()
    filter: list[FilterConfig] = []
    """What is let through: what at least one filter matches; none: everything."""
    exclude_tags: list[str] = []
    """Tags of attribute or event that keep an attribute off the bus, whatever the filters say."""
    threat_level: ThreatLevel = 4
    """Least threat level of the event: 1 (high) to 4 (undefined)."""
    published_only: bool = False
    """Whether changes wait until MISP publishes their event; the example file has it on."""
    warninglists: bool = False
    """Whether what is asked for over REST leaves out what is on MISP's warninglists."""
    false_positive_limit: NonNegativeInt = 0
    """False positives after which an indicator is withdrawn; 0: never."""
    valid_for: dict[str, Days] = {}
    """Days that an indicator is valid, by attribute type; ``default`` for all others."""
    backfill: Days = 0.0
    """Days of history that the first start publishes."""
    full_comparison: SecondsOrZero = 86_400.0
    """Seconds between two comparisons of everything that was published with MISP; 0: never."""

    @property
    def is_used(self) -> bool:
        """Whether these settings are those of a MISP, and not only around those that are."""
        return True

    @rule
    def has_a_source(self) -> None:
        """Raise `ConfigError` for a MISP that nothing would come from."""
        if self.is_used and self.zmq is None and self.kafka is None and not self.api.key:
            raise ConfigError("", "without any source", "a MISP with zmq, kafka, or an api.key")


class MispConfig(InstanceConfig, frozen=True, kw_only=True):
    """The section ``plugins.apps.misp``."""

    instances: dict[str, InstanceConfig] = {}
    """Several MISPs by name, instead of the keys above."""

    @property
    def is_used(self) -> bool:
        """Whether the keys above are those of the only MISP."""
        return not self.instances

    def path_of(self, name: str) -> str:
        """Give the key of the section of an instance."""
        return f"{SECTION}.instances.{name}" if self.instances else SECTION

    def check_modules(self) -> None:
        """Raise `InvalidConfig` where a section needs a Python module that is not installed."""
        errors = []
        for name, each in self.by_name.items():
            for key, wanted, module, package in (
                ("api.key", bool(each.api.key), "pymisp", "pymisp"),
                ("kafka", each.kafka is not None, "confluent_kafka", "confluent-kafka"),
            ):
                if wanted and find_spec(module) is None:
                    found = f"there, and the Python module {module} is not"
                    allowed = f"left out, or the module installed: pip install {package}"
                    errors.append(ConfigError(f"{self.path_of(name)}.{key}", found, allowed))
        if errors:
            raise InvalidConfig(errors)

    @property
    def by_name(self) -> dict[str, InstanceConfig]:
        """All instances; the old form with one has the name ``misp``."""
        return dict(self.instances) if self.instances else {"misp": self}


def _is_web_address(text: str) -> bool:
    try:
        url = urlsplit(text)
        # Looked at for what it raises.
        _ = url.port
    except ValueError:
        return False
    return url.scheme in ("http", "https") and bool(url.hostname) and text == text.strip()
