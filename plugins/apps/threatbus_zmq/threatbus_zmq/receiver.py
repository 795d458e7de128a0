"""Intake: from the SUB socket through the border to inq.

The ordinary frame is recognised in the endpoint's loop, at line rate. A frame that the fast path
is unsure of may take the STIX library up to a second; it goes to a worker of its own together with
those behind it, and the loop reads no further until they are through: nobody waits for one bad
document but the publishers behind it, and their order stays.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, Final, NamedTuple

import zmq
import zmq.backend

from threatbus.errors import Overflow, Undecided
from threatbus.intake import Intake
from threatbus.logger import RateLimited
from threatbus.messages import Message
from threatbus.rejects import RejectStore
from threatbus.workers import StoppableWorker
from threatbus_zmq.connections import hang_up, port_of, source_of
from threatbus_zmq.gatekeeper import Gatekeeper
from threatbus_zmq.keyring import Client
from threatbus_zmq.mapping import FrameReader, written_topic
from threatbus_zmq.monitor import Monitor

logger = logging.getLogger("threatbus.zmq.receiver")

ORIGIN: Final = "zmq sub"
#: Messages that ZeroMQ's pipe from one publisher may hold: few, since each may be as large as a
#: frame can be, and TCP holds up the publisher as soon as it is full; with fewer still, the loop
#: and ZeroMQ's threads wait for each other (measured beside the forwarder: 100 cost a quarter).
RECEIVE_MARK: Final = 256
#: Frames that one turn of the loop reads.
BATCH: Final = 500
#: Frames that are read between two looks at how large they are.
READS: Final = 20
#: Seconds until a frame is tried again that the border could not look at.
RETRY_SECS: Final = 0.5
#: Bytes after which a turn ends, so that it stays short with large frames, too.
BATCH_BYTES: Final = 1024 * 1024


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


class Receiver:
    """The SUB socket's side. Belongs to the endpoint's loop."""

    def __init__(
        self,
        reader: FrameReader,
        inq: Intake,
        rejects: RejectStore,
        wake: Callable[[], None],
        gatekeeper: Gatekeeper | None = None,
    ) -> None:
        self._gatekeeper = gatekeeper
        self._reader = reader
        self._inq = inq
        self._rejects = rejects
        self._log = RateLimited(logger)
        self.slow_lane = SlowLane(reader, inq, rejects, wake)
        self._recv: Callable[..., Any] = _nothing
        self._get: Callable[..., Any] = _nothing
        self.socket: zmq.Socket[bytes] | None = None
        # The port that it is bound to.
        self._door = 0
        self.monitor: Monitor | None = None
        self._max_message_size = 0

    def bind(
        self, context: zmq.Context[zmq.Socket[bytes]], address: str, max_message_size: int
    ) -> zmq.Socket[bytes]:
        """Open the socket at `address`; raises `zmq.ZMQError`."""
        socket = context.socket(zmq.SUB)
        try:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.MAXMSGSIZE, max_message_size)
            # Everything: what is published to a topic that nobody has is to be seen and rejected.
            socket.setsockopt(zmq.SUBSCRIBE, b"")
            socket.setsockopt(zmq.RCVHWM, RECEIVE_MARK)
            if self._gatekeeper is not None:
                self._gatekeeper.guard(socket, "sub")
            monitor = Monitor(socket, self._on_cut)
        except zmq.ZMQError:
            socket.close(0)
            raise
        self.socket, self.monitor, self._max_message_size = socket, monitor, max_message_size
        try:
            socket.bind(address)
        except zmq.ZMQError:
            self.close()
            raise
        self._door = port_of(socket)
        self._recv = zmq.backend.Socket.recv.__get__(socket)
        self._get = zmq.backend.Socket.get.__get__(socket)
        return socket

    @property
    def open(self) -> bool:
        """Whether frames may be read now: the socket is there and nothing behind it is full."""
        return self.socket is not None and self._inq.writable and not self.slow_lane.busy

    def take(self) -> int:
        """Read one batch of frames and put what they hold on inq; gives the number of frames."""
        if self._gatekeeper is None:
            batch, count = Batch(frames := self._read()), len(frames)
        else:
            batch, count = self._read_from_clients(self._gatekeeper)
        messages = self._reader.recognise(batch.frames)
        recognised = len(messages)
        if not all(sender.writes_all for sender in batch.senders):
            messages = permitted(messages, batch.senders, self._rejects)
        if messages:
            self._put(messages)
        if recognised < len(batch.frames):
            self.slow_lane.take(batch.rest(recognised))
        return count

    def _read(self) -> list[bytes]:
        """Read what is there, up to about `BATCH` frames and `BATCH_BYTES`."""
        recv = self._recv
        try:
            frames: list[bytes] = [recv(zmq.NOBLOCK)]
        except zmq.Again:
            return []
        if not self._has_more():
            return frames
        size = len(frames[0])
        try:
            while len(frames) < BATCH and size < BATCH_BYTES:
                start = len(frames)
                # What was read before one fails stays in the list.
                frames.extend(map(recv, repeat(zmq.NOBLOCK, READS)))
                size += sum(map(len, frames[start:]))
        except zmq.ZMQError:
            # Nothing more, or an error: what has been read goes on, the next turn meets it again.
            pass
        return frames

    def _has_more(self) -> bool:
        """Say whether there is another frame. To be told by an error costs twice as much."""
        return bool(self._get(zmq.EVENTS) & zmq.POLLIN)

    def _read_from_clients(self, gatekeeper: Gatekeeper) -> tuple[Batch, int]:
        """Read as `_read` does what clients send, and count the frames.

        Who is no longer authorised, or may no longer write, is cut off at its next frame.
        """
        frames: list[bytes] = []
        senders: list[Client] = []
        count = size = 0
        try:
            while count < BATCH and size < BATCH_BYTES:
                frame: zmq.Frame = self._recv(zmq.NOBLOCK, False)
                count += 1
                sender = gatekeeper.client_of(frame)
                if sender is None or not sender.writes:
                    hang_up(source_of(frame, self._door))
                    reason = "its key may not write any more"
                    self._rejects.add(origin_of(sender), reason, frame.bytes)
                    continue
                data = frame.bytes
                size += len(data)
                frames.append(data)
                senders.append(sender)
        except zmq.Again:
            pass
        except zmq.ZMQError:
            if not count:
                raise
        return Batch(frames, senders), count

    def close(self) -> None:
        """Close the socket. Idempotent."""
        if self.monitor is not None:
            self.monitor.close()
        if self.socket is not None:
            self.socket.close(0)
        self.socket = self.monitor = None
        self._recv = self._get = _nothing

    def _on_cut(self, host: str) -> None:
        limit = self._max_message_size
        self._rejects.add(
            ORIGIN,
            f"connection closed by the bus: {host} sent a frame of more than {limit} bytes "
            "(max_message_size) or broke the protocol; what it sent is lost",
            b"",
        )

    def _put(self, messages: list[Message]) -> None:
        try:
            self._inq.put_many(messages, wait=False)
        except Overflow as error:
            self._log.log("inq", logging.WARNING, "%d messages not taken: %s", len(messages), error)


def _nothing(*_: object) -> bytes:
    raise zmq.Again
