"""A client of the ZeroMQ app protocol (docs/protocol-zmq.md): what an app needs of the bus.

::

    endpoint = Endpoint.parse("tcp://127.0.0.1:13370")

    with Subscriber(endpoint, ["stix2/"]) as subscriber:
        while True:
            for message in subscriber.receive():
                ...

    with Publisher(endpoint) as publisher:
        publisher.publish("stix2/indicator", document)
        publisher.finish()

Everything happens in the calling thread, and every wait has an end or can be interrupted.
pyzmq is imported when the first socket is opened. It speaks to Threat Bus 2022.5.16 as well.

The rooms; each imports only from those above it:

============  ================================================
endpoint      where the bus is, and why nothing answers there
connection    sockets, requests and replies, sessions, deadlines
subscriber    receiving
publisher     publishing
============  ================================================
"""

from threatbus.client.connection import DEFAULT_TIMEOUT_SECS
from threatbus.client.endpoint import DEFAULT_ENDPOINT, DEFAULT_PORT, Endpoint
from threatbus.client.publisher import Publisher
from threatbus.client.subscriber import Subscriber
from threatbus.errors import Refused, Undelivered

__all__ = [
    "DEFAULT_ENDPOINT",
    "DEFAULT_PORT",
    "DEFAULT_TIMEOUT_SECS",
    "Endpoint",
    "Publisher",
    "Refused",
    "Subscriber",
    "Undelivered",
]
