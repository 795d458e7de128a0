"""Snapshots: the history that a new subscriber asks for.

A subscription with a time delta opens one snapshot per message type that its topics cover. The
request goes through the backbones to every node; on each it reaches every subscriber but the
one who asked, and every app plugin with a `snapshot` hook. Answers come back through the
backbones as envelopes; the node that asked hands their bodies to the requester alone.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import msgspec

from threatbus.data import MessageType, SnapshotRequest, SnapshotRequestEncoder
from threatbus.errors import Rejected
from threatbus.logger import RateLimited
from threatbus.messages import (
    SNAPSHOT_ENVELOPE,
    SNAPSHOT_REQUEST,
    TOPIC_OF_TYPE,
    EnvelopeView,
    Message,
    RequestView,
)
from threatbus.subscribers import SeenIds, Subscriber
from threatbus.workers import StoppableWorker

logger = logging.getLogger("threatbus.snapshots")

#: Requests that wait for the hook of one plugin; more are left out.
MAX_WAITING_REQUESTS = 1000

SnapshotHook = Callable[[SnapshotRequest], None]


def covered_types(topics: Iterable[str]) -> list[MessageType]:
    """Give the message types that at least one of `topics` matches."""
    prefixes = tuple(topics)
    return [kind for kind, topic in TOPIC_OF_TYPE.items() if topic.startswith(prefixes)]


class SnapshotAnswerer(StoppableWorker):
    """Calls the `snapshot` hook of one app plugin, which may take its time.

    Started with the bus. Blocks on its queue of requests, which `stop` wakes, and in the hook.
    """

    def __init__(self, plugin: str, hook: SnapshotHook) -> None:
        super().__init__(name=f"snapshots from {plugin}")
        self._plugin = plugin
        self._hook = hook
        self._requests: queue.Queue[SnapshotRequest | None] = queue.Queue(MAX_WAITING_REQUESTS)
        self._log = RateLimited(logger)

    def ask(self, request: SnapshotRequest) -> None:
        """Queue `request` for the hook; when too many wait, this one is left out."""
        try:
            self._requests.put_nowait(request)
        except queue.Full:
            self._log.log(
                "full",
                logging.WARNING,
                "plugin %s is behind: snapshot %s goes without it",
                self._plugin,
                request.snapshot_id,
            )

    def run(self) -> None:
        """Answer one request after the other."""
        while self._running():
            request = self._requests.get()
            if request is None:
                return
            try:
                self._hook(request)
            # A plugin that cannot answer is named, and the next request is tried again.
            except Exception:
                logger.exception(
                    "plugin %s failed to answer snapshot %s", self._plugin, request.snapshot_id
                )

    def stop(self) -> None:
        """Ask the worker to end and wake it."""
        super().stop()
        try:
            self._requests.put_nowait(None)
        except queue.Full:
            # Then the worker does not wait for a request, and looks before it takes the next one.
            return


class _Body(msgspec.Struct):
    type: str


@dataclass
class _Open:
    """One requested snapshot: who asked, for what, until when answers are awaited."""

    requester: Subscriber
    kind: MessageType
    deadline: float
    bodies: int = 0


class Snapshots:
    """All open snapshots of this node, and the outlet for the bus's internal topics.

    `subscribers` gives the current subscribers; `timeout` is how many seconds after the last
    answer a snapshot is forgotten. Called from the backbones' threads and from whoever
    subscribes; none of it blocks.
    """

    def __init__(
        self,
        subscribers: Callable[[], Sequence[Subscriber]],
        timeout: float,
        *,
        several_backbones: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._subscribers = subscribers
        self._timeout = timeout
        self._clock = clock
        self._log = RateLimited(logger)
        # Guards the three fields below.
        self._lock = threading.Lock()
        self._seen = SeenIds() if several_backbones else None
        self._open: dict[str, _Open] = {}
        self._answerers: tuple[SnapshotAnswerer, ...] = ()
        self._envelopes = msgspec.json.Decoder(EnvelopeView)
        self._bodies = msgspec.json.Decoder(_Body)
        self._requests = msgspec.json.Decoder(RequestView)
        # Answers whose snapshot is unknown here: of another node, or forgotten.
        self.unclaimed = 0

    def start(self, hooks: Mapping[str, SnapshotHook]) -> None:
        """Start one worker per app plugin that can answer requests."""
        self._answerers = tuple(SnapshotAnswerer(name, hook) for name, hook in hooks.items())
        for answerer in self._answerers:
            answerer.start()

    def stop(self) -> None:
        """Ask the workers to end; does not wait."""
        for answerer in self._answerers:
            answerer.stop()

    def open(
        self, requester: Subscriber, topics: Iterable[str], delta: timedelta
    ) -> list[tuple[str, Message]]:
        """Open a snapshot per type that `topics` cover; give ids and the requests to be sent.

        A type for which the requester has a snapshot open already is left out.
        """
        self._forget_expired()
        deadline = self._clock() + self._timeout
        opened = []
        with self._lock:
            busy = {entry.kind for entry in self._open.values() if entry.requester is requester}
            for kind in covered_types(topics):
                if kind in busy:
                    continue
                snapshot_id = str(uuid.uuid4())
                self._open[snapshot_id] = _Open(requester, kind, deadline)
                request = SnapshotRequest(kind, snapshot_id, delta)
                text = json.dumps(request, cls=SnapshotRequestEncoder)
                opened.append((snapshot_id, Message(SNAPSHOT_REQUEST, text.encode())))
        if opened:
            requester.open_snapshot(deadline)
        return opened

    def forget(self, requester: Subscriber) -> None:
        """Forget the snapshots of a subscriber that is gone."""
        with self._lock:
            for snapshot_id in [
                k for k, entry in self._open.items() if entry.requester is requester
            ]:
                del self._open[snapshot_id]

    @property
    def open_ids(self) -> list[str]:
        """The ids of the snapshots that answers are awaited for."""
        self._forget_expired()
        with self._lock:
            return list(self._open)

    # The outlet that the bus subscribes for its internal topics.

    def put_many(self, batch: Sequence[Message], size: int | None = None) -> None:  # noqa: ARG002
        """Take requests and envelopes from a backbone."""
        if self._seen is not None:
            with self._lock:
                batch = self._seen.first_copies(batch)
        for message in batch:
            if message.topic == SNAPSHOT_ENVELOPE:
                self._hand_back(message)
            elif message.topic == SNAPSHOT_REQUEST:
                self._pass_on(message)

    def put(self, item: object) -> None:
        """Take one request or envelope as a plain object, from a backbone of the old kind."""
        try:
            message = Message.from_object(item)
        except Rejected as error:
            self._log.log("put", logging.WARNING, "no snapshot message: %s", error.reason)
            return
        self.put_many([message])

    def _pass_on(self, message: Message) -> None:
        """Ask everyone on this node but the requester."""
        try:
            view = self._requests.decode(message.data)
            request = view.to_request()
        except (msgspec.MsgspecError, ValueError, OverflowError) as error:
            self._log.log(
                "request", logging.WARNING, "a snapshot request cannot be read: %s", error
            )
            return
        with self._lock:
            entry = self._open.get(view.snapshot_id)
        requester = entry.requester if entry else None
        for subscriber in self._subscribers():
            if subscriber is not requester:
                subscriber.put_many([message])
        for answerer in self._answerers:
            answerer.ask(request)

    def _hand_back(self, message: Message) -> None:
        """Hand the body of an envelope to the one who asked, if that was here."""
        try:
            view = self._envelopes.decode(message.data)
            kind = MessageType(view.snapshot_type)
            found = self._bodies.decode(view.body).type
        except (msgspec.MsgspecError, ValueError) as error:
            self._log.log(
                "envelope", logging.WARNING, "a snapshot envelope cannot be read: %s", error
            )
            return
        with self._lock:
            entry = self._open.get(view.snapshot_id)
            if entry is None or entry.deadline < self._clock():
                self.unclaimed += 1
                logger.debug("snapshot %s is not awaited here", view.snapshot_id)
                return
            fits = kind is entry.kind and found == kind.name.lower()
            if fits:
                entry.bodies += 1
                entry.deadline = self._clock() + self._timeout
        if not fits:
            # The requester may not have subscribed to what this is.
            self._log.log(
                "kind",
                logging.WARNING,
                "a %s is no answer to snapshot %s of %ss",
                found,
                view.snapshot_id,
                entry.kind.name.lower(),
            )
            return
        body = Message(TOPIC_OF_TYPE[kind], bytes(view.body), message.id)
        entry.requester.put_snapshot_body(body, entry.deadline)

    def _forget_expired(self) -> None:
        now = self._clock()
        with self._lock:
            expired = [key for key, entry in self._open.items() if entry.deadline < now]
            ended = [self._open.pop(key) for key in expired]
            waiting = {id(entry.requester) for entry in self._open.values()}
        for entry in ended:
            logger.info(
                "snapshot of %ss for %s ends: %d objects, none for %.0f s",
                entry.kind.name.lower(),
                entry.requester.name,
                entry.bodies,
                self._timeout,
            )
            if id(entry.requester) not in waiting:
                entry.requester.close_snapshots()
