"""The clients that may take part: a directory with a file for each, read again when it changes."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from threatbus.errors import InvalidConfig
from threatbus.keyfiles import CLIENT_SUFFIX, ClientRights, read_file
from threatbus.messages import INTERNAL_PREFIX, STIX_PREFIX, TOPIC_OF_TYPE

logger = logging.getLogger("threatbus.zmq.keys")

#: Seconds after which a change in the directory counts, at the latest, once anything moves.
LOOK_SECS: Final = 1.0
#: Seconds between two looks on account of unknown keys, of which anybody may show many.
SEARCH_SECS: Final = 0.1


class Client:
    """A client that may take part, and what it may do."""

    def __init__(self, name: str, rights: ClientRights) -> None:
        self.name = name
        self.key = rights.public_key
        self.reads = rights.read
        self.writes = rights.write
        # Whether it may read everything there is, so that it need not say what of it.
        self._reads_all = all(topic.startswith(self.reads) for topic in TOPIC_OF_TYPE.values())
        #: Whether it may publish everything there is, so that messages need not be looked at.
        self.writes_all = all(map(self.may_write, TOPIC_OF_TYPE.values()))

    def may_read(self, topic: str) -> bool:
        """Say whether it may subscribe to `topic`, and so to all that begins with it."""
        if STIX_PREFIX.startswith(topic):
            return self._reads_all
        # What is the bus's own brings nobody any messages; publishers subscribe to it.
        return topic.startswith((*self.reads, INTERNAL_PREFIX))

    def may_write(self, topic: str) -> bool:
        """Say whether it may publish a message of `topic`."""
        return topic.startswith(self.writes)


class KeyRing:
    """The clients by their public keys. Belongs to the endpoint's loop.

    A file that cannot be read authorises nobody. If the directory cannot be read, nobody is
    authorised; but when the process lacks descriptors or memory, what was known stays.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._clock = clock
        # When it is time to look again, and to look for a key that is unknown.
        self._next_look = self._next_search = -math.inf
        #: How often it has changed.
        self.changes = 0
        # Of each file: what changes when it does.
        self._seen: Mapping[str, tuple[int, ...]] = {}
        self._clients: dict[str, Client] = {}
        self.refresh()

    def __len__(self) -> int:
        return len(self._clients)

    def get(self, key: str) -> Client | None:
        """Give the client with this public key; None if it may not take part."""
        return self._clients.get(key)

    def find(self, key: str) -> Client | None:
        """Do as `get`, but look whether a key that is unknown has just been added."""
        if key not in self._clients and self._clock() >= self._next_search:
            self._next_search = self._clock() + SEARCH_SECS
            self._look()
        return self.get(key)

    def refresh(self) -> None:
        """Look at the directory, if it is time to."""
        if self._clock() >= self._next_look:
            self._look()

    def _look(self) -> None:
        self._next_look = self._clock() + LOOK_SECS
        try:
            seen = _signatures(self._directory)
            if seen == self._seen:
                return
            clients = list(_read_all(self._directory, seen))
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            if not self._clients and not self._seen:
                return
            why = error.strerror
            logger.error("%s cannot be read (%s): nobody gets in", self._directory, why)  # noqa: TRY400
            seen, clients = {}, []
        except OSError as error:
            logger.warning("keys stay as they are, %s: %s", self._directory, error.strerror)
            return
        self._seen = seen
        self._replace(clients)
        self.changes += 1

    def _replace(self, clients: Iterable[Client]) -> None:
        before, self._clients = self._clients, {}
        for client in clients:
            other = self._clients.setdefault(client.key, client)
            if other is not client:
                logger.error("%s has the key of %s and is left out", client.name, other.name)
        for key in before.keys() - self._clients.keys():
            logger.info("the key of %s is no longer authorised", before[key].name)
        for key in self._clients.keys() - before.keys():
            logger.info("the key of %s is authorised", self._clients[key].name)


def _signatures(directory: Path) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.endswith(CLIENT_SUFFIX):
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue
                found[entry.name] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return found


def _read_all(directory: Path, names: Iterable[str]) -> Iterable[Client]:
    for name in sorted(names):
        try:
            rights = read_file(directory / name, ClientRights)
        except InvalidConfig as error:
            logger.error("not authorised: %s", error)  # noqa: TRY400
        except (FileNotFoundError, PermissionError) as error:
            logger.error("not authorised: %s: %s", directory / name, error.strerror)  # noqa: TRY400
        else:
            yield Client(name.removesuffix(CLIENT_SUFFIX), rights)
