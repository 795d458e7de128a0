"""Intake: from the publishers' connections through the border to inq.

The ordinary frame is recognised in the endpoint's loop, at line rate. A frame that the fast path
is unsure of may take the STIX library up to a second; it goes to a worker of its own together with
those behind it, and the loop reads no further until they are through: nobody waits for one bad
document but the publishers behind it, and their order stays.
"""

from __future__ import annotations

import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from threatbus.errors import Overflow, Undecided
from threatbus.intake import Intake
from threatbus.logger import RateLimited
from threatbus.messages import Message
from threatbus.rejects import RejectStore
from threatbus.workers import StoppableWorker
from threatbus_zmq.door import Door, loss
from threatbus_zmq.keyring import Client, KeyRing
from threatbus_zmq.link import Link
from threatbus_zmq.mapping import FrameReader, written_topic
from threatbus_zmq.zmtp import SUBSCRIBES, BrokenProtocol, Role, Session

logger = logging.getLogger("threatbus.zmq.receiver")

ORIGIN: Final = "zmq sub"
#: Frames that one turn of the loop reads, about, from all publishers together.
BATCH: Final = 500
#: What is read ahead of a publisher while nothing can be taken, about: frames, bytes; and bytes of
#: all of them together.
AHEAD_FRAMES: Final = 256
AHEAD_BYTES: Final = 256 * 1024
ALL_AHEAD_BYTES: Final = 64 * 1024 * 1024
# Why a connection is not read: enough has been read ahead.
_ENOUGH: Final = "enough is ahead"
#: Seconds until a frame is tried again that the border could not look at.
RETRY_SECS: Final = 0.5


class Batch(NamedTuple):
    """Frames that were read, and the client that sent each; no clients where no keys are asked."""

    frames: Sequence[bytes]
    senders: Sequence[Client] = ()

    def sender(self, number: int) -> Client | None:
        """Give the client that sent a frame, if keys are asked for."""
        return self.senders[number] if self.senders else None

    def rest(self, start: int) -> Batch:
        """Give what comes from `start` on."""
        return Batch(self.frames[start:], self.senders[start:])


def origin_of(sender: Client | None) -> str:
    """Give what the reject store says of where a frame came from."""
    return ORIGIN if sender is None else f"{ORIGIN} from {sender.name}"


def permitted(
    messages: Sequence[Message], senders: Sequence[Client], rejects: RejectStore
) -> list[Message]:
    """Give the messages that their senders may write; the others are rejected."""
    found = []
    for message, sender in zip(messages, senders, strict=False):
        topic = written_topic(message)
        if sender.may_write(topic):
            found.append(message)
        else:
            rejects.add(origin_of(sender), f"it may not write {topic}", message.data)
    return found


class SlowLane(StoppableWorker):
    """Reads the frames that the fast path is unsure of. Started with the endpoint.

    Blocks on its queue and between two attempts, which `stop` wakes, and at the gate, which opens
    when the bus stops.
    `idle` is called whenever it has dealt with all.
    """

    def __init__(
        self, reader: FrameReader, inq: Intake, rejects: RejectStore, idle: Callable[[], None]
    ):
        super().__init__(name="zmq border")
        self._reader = reader
        self._inq = inq
        self._rejects = rejects
        self._idle = idle
        self._log = RateLimited(logger)
        # Hand-overs; None ends the worker, after those before it.
        self._frames: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        # Whether frames are under way; set by the loop, cleared by this worker when it is done.
        self.busy = False

    def take(self, batch: Batch) -> None:
        """Deal with what was read, in order. Called by the loop while not `busy`."""
        self.busy = True
        self._frames.put(batch)

    def run(self) -> None:
        """Deal with one hand-over after the other."""
        while (batch := self._frames.get()) is not None:
            try:
                self._deal_with(batch)
            finally:
                self.busy = False
                self._idle()

    def stop(self) -> None:
        """Ask the worker to end after what it has, and wake it."""
        super().stop()
        self._frames.put(None)

    def _deal_with(self, batch: Batch) -> None:
        for number, frame in enumerate(batch.frames):
            try:
                self._deal_with_patiently(frame, batch.sender(number))
            except Overflow as error:
                logger.warning("%d frames not taken: %s", len(batch.frames) - number, error)
                return
            # Whatever a frame sets off, those behind it are dealt with.
            except Exception as error:
                logger.exception("a frame could not be read")
                origin = origin_of(batch.sender(number))
                self._rejects.add(origin, f"internal error: {type(error).__name__}", frame)

    def _deal_with_patiently(self, frame: bytes, sender: Client | None) -> None:
        """Deal with a frame as soon as the border can look at it; publishers wait meanwhile."""
        while True:
            try:
                self._deal_with_one(frame, sender)
                return
            except Undecided as error:
                self._log.log("border", logging.ERROR, "publishers wait: %s", error)
                if self._stop_asked.wait(RETRY_SECS):
                    raise

    def _deal_with_one(self, frame: bytes, sender: Client | None) -> None:
        messages = self._reader.recognise([frame])
        if not messages:
            messages, rejected = self._reader.read(frame)
            for reason, data in rejected:
                self._rejects.add(origin_of(sender), reason, data)
        if sender is not None and not sender.writes_all:
            messages = permitted(messages, [sender] * len(messages), self._rejects)
        if messages:
            # A full outq keeps this worker waiting here, and the loop from reading more.
            self._inq.put_many(messages)


class Ahead:
    """What has been read of one publisher while nothing could be taken."""

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque()
        self.bytes = 0

    @property
    def is_enough(self) -> bool:
        """Whether no more is to be read ahead."""
        return len(self.frames) >= AHEAD_FRAMES or self.bytes >= AHEAD_BYTES

    def add(self, frames: Sequence[bytes]) -> int:
        """Take over frames; gives their bytes."""
        size = sum(map(len, frames))
        self.frames.extend(frames)
        self.bytes += size
        return size

    def take(self, limit: int) -> list[bytes]:
        """Give the first frames, at most `limit`."""
        taken = [self.frames.popleft() for _ in range(min(limit, len(self.frames)))]
        self.bytes -= sum(map(len, taken))
        return taken


class Receiver:
    """The publishers' door, and what comes in by it. Belongs to the endpoint's loop.

    With a `ring` of keys, every publisher has one that is, or was, on it.
    """

    def __init__(
        self,
        reader: FrameReader,
        inq: Intake,
        rejects: RejectStore,
        wake: Callable[[], None],
        new_session: Callable[[Role, str], Session],
        max_message_size: int,
        ring: KeyRing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = reader
        self._inq = inq
        self._rejects = rejects
        self._ring = ring
        self._log = RateLimited(logger)
        self.slow_lane = SlowLane(reader, inq, rejects, wake)
        # Everything: what is published to a topic that nobody has is to be seen and rejected.
        role = Role("SUB", ("PUB", "XPUB"), max_message_size, begins_with=SUBSCRIBES)
        #: Where publishers connect.
        self.door = Door(role, new_session, Link, self, clock)
        # By connection, which may have ended since; and those that are not read further for now.
        self._ahead: dict[Link, Ahead] = {}
        self._ahead_bytes = 0
        self._paused: set[Link] = set()

    @property
    def open(self) -> bool:
        """Whether frames may be read now: the door is there and nothing behind it is full."""
        return self.door.open and self._inq.writable and not self.slow_lane.busy

    @property
    def has_come(self) -> bool:
        """Whether there is something to take that no descriptor tells of."""
        return bool(self._ahead) or self.door.has_come

    def read_ahead(self) -> None:
        """Read a little of each publisher while nothing can be taken.

        So heartbeats are answered, and who says what it has to say and goes, takes no descriptor.
        """
        links = self.door.come()
        for link in links:
            if self._ahead_bytes < ALL_AHEAD_BYTES:
                frames = self.door.read(link, max(1, AHEAD_FRAMES // len(links)), len(links))
                if frames:
                    self._ahead_bytes += self._ahead.setdefault(link, Ahead()).add(frames)
            ahead = self._ahead.get(link)
            enough = ahead is not None and ahead.is_enough
            if link.open and (enough or self._ahead_bytes >= ALL_AHEAD_BYTES):
                self.door.pause(link, _ENOUGH)
                self._paused.add(link)

    def close(self) -> None:
        """Close the door for good."""
        self.door.close()
        if left := sum(len(ahead.frames) for ahead in self._ahead.values()):
            logger.warning("%d messages of publishers could not be taken in time", left)
        self._ahead.clear()
        self._ahead_bytes = 0

    def take(self) -> int:
        """Read one batch of frames and put what they hold on inq; gives the number of frames."""
        batch, count = self._read()
        messages = self._reader.recognise(batch.frames)
        recognised = len(messages)
        if not all(sender.writes_all for sender in batch.senders):
            messages = permitted(messages, batch.senders, self._rejects)
        if messages:
            self._put(messages)
        if recognised < len(batch.frames):
            self.slow_lane.take(batch.rest(recognised))
        return count

    def _read(self) -> tuple[Batch, int]:
        """Give what may be published of what is there, and the number of frames that were there.

        Each publisher has its share of a turn, whatever the others send.
        """
        frames: list[bytes] = []
        senders: list[Client] = []
        count = 0
        self._go_on()
        links = list(dict.fromkeys([*self._ahead, *self.door.come()]))
        for link in links:
            read = self._read_of(link, max(1, BATCH // len(links)), len(links))
            count += len(read)
            if self._ring is not None and read:
                sender = self._ring.get(link.session.key or "")
                if sender is None or not sender.writes:
                    self._refuse(link, sender, read)
                    continue
                senders += [sender] * len(read)
            frames += read
        return Batch(frames, senders), count

    def _read_of(self, link: Link, limit: int, among: int) -> list[bytes]:
        """Give the next frames of a publisher."""
        ahead = self._ahead.get(link)
        if ahead is None:
            return self.door.read(link, limit, among)
        before = ahead.bytes
        frames = ahead.take(limit)
        self._ahead_bytes -= before - ahead.bytes
        if not ahead.frames:
            del self._ahead[link]
        return frames

    def _go_on(self) -> None:
        """Read those again of which enough had been read ahead."""
        for link in self._paused:
            self.door.resume(link, _ENOUGH)
        self._paused.clear()

    def _refuse(self, link: Link, sender: Client | None, frames: Sequence[bytes]) -> None:
        """Let nothing in from who is no longer authorised, or may no longer write."""
        for frame in frames:
            self._rejects.add(origin_of(sender), "its key may not write any more", frame)
        self.door.cut_off(link, "its key may not write any more")

    def _put(self, messages: list[Message]) -> None:
        try:
            self._inq.put_many(messages, wait=False)
        except Overflow as error:
            self._log.log("inq", logging.WARNING, "%d messages not taken: %s", len(messages), error)

    # What the door tells.

    def on_room(self, link: Link) -> None:
        """Do nothing: what is sent to a publisher is the protocol's own."""

    def on_end(self, link: Link, broken: BrokenProtocol | None) -> None:
        """Count what is lost when a publisher breaks the protocol."""
        self._paused.discard(link)
        limit = self.door.role.max_frame
        if lost := loss(link, broken, f"a frame of more than {limit} bytes (max_message_size)"):
            self._rejects.add(ORIGIN, lost, b"")
