"""Seeing into a running bus without standing in its way.

What the message path does for it is little, and done per batch: it counts topics, notes when a
batch came, and lets the `Ring` refer to it. Whatever costs more (decoding, searching, adding up)
is done by whoever asks, in the thread that asks.

==========  ============================================================================
counts      messages by topic
latency     when a message came, and how long it took to its reader: one is timed at a time
ring        references to the batches that passed last, within bounds
report      what plugins say of themselves: connections, workers, numbers of their own
observer    all of that for one bus; what the message path calls
passages    the ring, decoded: what passed, searched and followed
trace       where one object or value came from, and where it went
view        the whole bus at one moment: status and readiness
metrics     the same as numbers by name, as monitoring wants them
==========  ============================================================================
"""
