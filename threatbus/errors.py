"""Every error that Threat Bus raises on purpose.

::

    ThreatBusError
    ├── ConfigError        one wrong setting: key, what was found, what is allowed
    ├── InvalidConfig      all the ConfigErrors of one configuration
    ├── PluginError        a plugin is missing, broken, or names a hook that does not exist
    ├── Rejected           a message that the border does not let in
    │   └── NotCarried     … because it is of a type that the bus does not carry
    ├── CheckFailed        what a check of `threatbus doctor` looked at does not work
    ├── Undecided          the border cannot look at a message now, whatever it is
    ├── ControlError       the control socket cannot be opened; the bus goes on without it
    ├── Overflow           a queue that is full, or that a policy has closed
    ├── ConnectionLost     a tool at the other end of a plugin's connection is not there
    ├── BusUnreachable     a client found nothing that answers at its endpoint
    ├── Refused            a client got an answer, but not what it asked for
    └── Undelivered        not all that a client published has surely reached the bus

A driver's own exceptions (ZeroMQ, pika, …) are translated into one of these where
they arise and go no further.
"""

from __future__ import annotations

from collections.abc import Sequence


class ThreatBusError(Exception):
    """Root of all errors raised by Threat Bus."""


class ConfigError(ThreatBusError):
    """One setting that is wrong.

    `key` is the dotted path as in the YAML file (``plugins.apps.zmq.pub``), `found` what stands
    there (None: nothing), `allowed` what may stand there, `hint` the nearest known key, if any.
    """

    def __init__(self, key: str, found: str | None, allowed: str, hint: str | None = None) -> None:
        self.key = key
        self.found = found
        self.allowed = allowed
        self.hint = hint
        super().__init__(key, found, allowed, hint)

    def __str__(self) -> str:
        found = "is missing" if self.found is None else f"is {self.found}"
        hint = f"; did you mean {self.hint}?" if self.hint else ""
        line = f"{self.key}: {found}, but it must be {self.allowed}{hint}"
        # A key is whatever the file says; the message stays one line.
        return "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode() for char in line
        )


class InvalidConfig(ThreatBusError):
    """A configuration that cannot be started; `errors` holds every reason at once.

    `warnings` is what else is odd about it, and may be why: a variable that has no effect.
    """

    def __init__(self, errors: Sequence[ConfigError], warnings: Sequence[str] = ()) -> None:
        self.errors = tuple(errors)
        self.warnings = tuple(warnings)
        super().__init__(self.errors, self.warnings)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


class PluginError(ThreatBusError):
    """A plugin that cannot be loaded or that does not keep to the hook specification."""


class Rejected(ThreatBusError):
    """A message that the border does not let in; `reason` is one line for log and sender."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class NotCarried(Rejected):
    """A STIX object of a type that the bus has no topic for, as bundles are full of them."""


class Undecided(ThreatBusError):
    """The border cannot look at a message now: this process lacks something, not the message.

    Nothing is said about the message; whoever holds it tries again later.
    """


class Overflow(ThreatBusError):
    """A queue had no room, or was closed because it had none."""


class ConnectionLost(ThreatBusError):
    """The tool at the other end of a plugin's connection is not, or no longer, there.

    What was to be sent was not handed over. The plugin connects again; whoever sent, sends anew.
    """


class CheckFailed(ThreatBusError):
    """What a check of `threatbus doctor` looked at does not work.

    `detail` says what was found, `next_step` what to do about it. Neither holds a secret.
    """

    def __init__(self, detail: str, next_step: str) -> None:
        self.detail = detail
        self.next_step = next_step
        super().__init__(detail, next_step)

    def __str__(self) -> str:
        return f"{self.detail}; {self.next_step}"


class ControlError(ThreatBusError):
    """The control socket cannot be opened: another bus has it, or the system does not allow it."""


class BusUnreachable(ThreatBusError):
    """Nothing answers at the endpoint, or what answers is no Threat Bus."""


class Refused(ThreatBusError):
    """The bus answers, but not with what was asked for; says its reason if it gave one."""


class Undelivered(ThreatBusError):
    """Not all that was published has surely reached the bus; `handed_over` were on their way."""

    def __init__(self, reason: str, handed_over: int) -> None:
        self.reason = reason
        self.handed_over = handed_over
        super().__init__(reason, handed_over)

    def __str__(self) -> str:
        return (
            f"{self.reason}; {self.handed_over:,} objects were handed over until then, "
            "and the last ones may not have arrived"
        )
