"""Answers requests for history from MISP's REST API, page by page."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence

from threatbus.data import MessageType, SnapshotRequest
from threatbus.errors import Overflow, Rejected
from threatbus.messages import SNAPSHOT_ENVELOPE, Message
from threatbus_misp.config import InstanceConfig
from threatbus_misp.filters import asked_for
from threatbus_misp.index import IndexUnusable
from threatbus_misp.mapping import model, sightings
from threatbus_misp.reconciler import Reconciler
from threatbus_misp.rest import MispApi
from threatbus_misp.rest_errors import MispError

logger = logging.getLogger("threatbus.misp.snapshots")


def answer(
    name: str,
    config: InstanceConfig,
    api: MispApi,
    reconciler: Reconciler,
    request: SnapshotRequest,
    put: Callable[[Sequence[Message]], None],
    running: Callable[[], bool],
    now: Callable[[], float] = time.time,
) -> None:
    """`put` an envelope for each object; a MISP or an index that fails ends it with a log line.

    So does a bus that is stopping: `put` raises `Overflow` then, `running` gives False.
    """
    since = int(now() - request.snapshot.total_seconds())
    pages = (
        _indicators(config, api, reconciler, since, running)
        if request.snapshot_type is MessageType.INDICATOR
        else _sightings(api, reconciler, since, running)
    )
    head = _head(request)
    count = 0
    try:
        for bodies in pages:
            put([Message(SNAPSHOT_ENVELOPE, head + body + b"}") for body in bodies])
            count += len(bodies)
    except (MispError, IndexUnusable, Overflow) as error:
        logger.warning("%s: the snapshot ends after %d objects: %s", name, count, error)
        return
    logger.info("%s: %d objects for a snapshot of %s", name, count, request.snapshot)


def _head(request: SnapshotRequest) -> bytes:
    """Give the envelope up to its body: bodies go out as they were mapped."""
    fields = {
        "type": "snapshotenvelope",
        "snapshot_type": request.snapshot_type.value,
        "snapshot_id": str(request.snapshot_id),
    }
    return json.dumps(fields)[:-1].encode() + b', "body": '


def _indicators(
    config: InstanceConfig,
    api: MispApi,
    reconciler: Reconciler,
    since: int,
    running: Callable[[], bool],
) -> Iterator[list[bytes]]:
    for page in api.attributes_changed(since, only=asked_for(config), running=running):
        bodies = []
        for found in page:
            try:
                body = reconciler.current(model.read_attribute(found))
            except Rejected:
                continue
            if body is not None:
                bodies.append(body)
        yield bodies


def _sightings(
    api: MispApi, reconciler: Reconciler, since: int, running: Callable[[], bool]
) -> Iterator[list[bytes]]:
    for page in api.sightings(since, running=running):
        bodies = []
        for found in page:
            try:
                sighting = model.read_sighting(found)
                body = sightings.sighting_of(sighting, source=reconciler.source)
            except Rejected:
                continue
            if body is not None and reconciler.tells_of(sighting):
                bodies.append(body)
        yield bodies
