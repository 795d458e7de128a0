"""A client of the ZeroMQ app protocol (docs/protocol-zmq.md): what an app needs of the bus.

An app that stays (docs/writing-an-app.md) is an `App`. It finds the bus, shows signs of life, and
recovers from every loss in the background::

    with App(Endpoint.parse("tcp://127.0.0.1:13370"), ["stix2/indicator"]) as app:
        for message in app.messages():
            indicator = read(message)
            ...
            app.publish_sighting(sighting(indicator.id, context={"host": "10.0.0.1"}))

A command that does one thing and ends uses its two halves, `Subscriber` and `Publisher`: everything
happens in the calling thread, and what is wrong is raised. Every wait has an end or can be
interrupted. pyzmq is imported when the first socket is opened. All of it speaks to Threat Bus
2022.5.16 as well.

The rooms; each imports only from those above it:

============  ================================================
endpoint      where the bus is, and by which keys it is spoken to
silence       why nothing answers there
connection    sockets, requests and replies, sessions, deadlines
inlet         the socket from which messages come
subscriber    receiving
publisher     publishing
documents     typed views of what came, bytes of what leaves
background    the threads of an app
app           both, in the background
============  ================================================
"""

from threatbus.client.app import App
from threatbus.client.connection import DEFAULT_TIMEOUT_SECS
from threatbus.client.documents import Indicator, Sighting, envelope, read, sighting
from threatbus.client.endpoint import DEFAULT_ENDPOINT, DEFAULT_PORT, Endpoint
from threatbus.client.publisher import Publisher
from threatbus.client.subscriber import Subscriber
from threatbus.data import MatchType, SnapshotRequest
from threatbus.errors import Refused, Undelivered
from threatbus.messages import Message

__all__ = [
    "DEFAULT_ENDPOINT",
    "DEFAULT_PORT",
    "DEFAULT_TIMEOUT_SECS",
    "App",
    "Endpoint",
    "Indicator",
    "MatchType",
    "Message",
    "Publisher",
    "Refused",
    "Sighting",
    "SnapshotRequest",
    "Subscriber",
    "Undelivered",
    "envelope",
    "read",
    "sighting",
]
