"""Plugins as third parties wrote them for Threat Bus 2022.5.16: modules, globals and all."""

#: An app that keeps indicators it receives, reports a sighting of each, and answers snapshots.
APP = '''
from multiprocessing import JoinableQueue
from queue import Empty
from dynaconf import Validator
from stix2 import Indicator, Sighting
from threatbus import logger as tb_logger
from threatbus.data import (
    MessageType,
    SnapshotEnvelope,
    SnapshotRequest,
    ThreatBusSTIX2Constants,
)
import threatbus

plugin_name = "old"
logger = None
workers = list()
outq = None
received = list()
requests = list()
history = list()


class Publisher(threatbus.StoppableWorker):
    """Reads the outq and reports back."""

    def __init__(self, q, inq, source):
        super(Publisher, self).__init__()
        self.q = q
        self.inq = inq
        self.source = source

    def run(self):
        global logger
        while self._running():
            try:
                msg = self.q.get(block=True, timeout=1)
            except Empty:
                continue
            if not msg:
                continue
            if type(msg) is Indicator:
                received.append(msg)
                logger.debug(f"Got {msg.id} with pattern {msg.pattern}: {msg.serialize()}")
                self.inq.put(
                    Sighting(
                        sighting_of_ref=msg.id,
                        allow_custom=True,
                        custom_properties={
                            ThreatBusSTIX2Constants.X_THREATBUS_SOURCE.value: self.source,
                        },
                    )
                )
            elif type(msg) is SnapshotRequest:
                requests.append(msg)
            self.q.task_done()


@threatbus.app
def config_validators():
    return [
        Validator(f"plugins.apps.{plugin_name}.host", default="localhost"),
        Validator(f"plugins.apps.{plugin_name}.port", is_type_of=int, must_exist=True),
    ]


@threatbus.app
def snapshot(snapshot_request, result_q):
    if snapshot_request.snapshot_type != MessageType.INDICATOR:
        return
    for indicator in history:
        result_q.put(
            SnapshotEnvelope(
                snapshot_request.snapshot_type, snapshot_request.snapshot_id, indicator
            )
        )


@threatbus.app
def run(config, logging, inq, subscribe_callback, unsubscribe_callback):
    global logger, workers, outq
    assert plugin_name in config
    logger = tb_logger.setup(logging, __name__)
    config = config[plugin_name]
    outq = JoinableQueue()
    assert config["port"] == config.port
    subscribe_callback("stix2/indicator", outq)
    workers.append(Publisher(outq, inq, f"{config.host}:{config['port']}"))
    for w in workers:
        w.start()
    logger.info("Old plugin started")


@threatbus.app
def stop():
    global logger, workers
    for w in workers:
        if not w.is_alive():
            continue
        w.stop()
        w.join()
    logger.info("Old plugin stopped")
'''

#: A backbone that sorts messages into queues in a thread, under a lock of its own.
BACKBONE = """
from collections import defaultdict
from queue import Empty
import threading
from threatbus.data import SnapshotEnvelope, SnapshotRequest
import threatbus

plugin_name = "oldmem"
subscriptions = defaultdict(set)
lock = threading.Lock()
logger = None
workers = list()


class Provisioner(threatbus.StoppableWorker):
    def __init__(self, inq):
        super(Provisioner, self).__init__()
        self.inq = inq

    def run(self):
        while self._running():
            try:
                msg = self.inq.get(block=True, timeout=1)
            except Empty:
                continue
            topic = f"stix2/{type(msg).__name__.lower()}"
            if type(msg) is SnapshotRequest or type(msg) is SnapshotEnvelope:
                topic = f"threatbus/{type(msg).__name__.lower()}"
            lock.acquire()
            try:
                for t in filter(lambda t: topic.startswith(t), subscriptions.keys()):
                    for outq in subscriptions[t]:
                        outq.put(msg)
            finally:
                lock.release()
            self.inq.task_done()


@threatbus.backbone
def run(config, logging, inq):
    global logger, workers
    logger = threatbus.logger.setup(logging, __name__)
    workers.append(Provisioner(inq))
    for w in workers:
        w.start()


@threatbus.backbone
def subscribe(topic, q):
    lock.acquire()
    subscriptions[topic].add(q)
    lock.release()


@threatbus.backbone
def unsubscribe(topic, q):
    lock.acquire()
    if q in subscriptions[topic]:
        subscriptions[topic].remove(q)
    if len(subscriptions[topic]) == 0:
        del subscriptions[topic]
    lock.release()


@threatbus.backbone
def stop():
    global workers
    for w in workers:
        if not w.is_alive():
            continue
        w.stop()
        w.join()
    workers = list()
"""
