"""Chaos: faults around a running bus, and an exact count of what came of it.

============  ====================================================================
ledger        who was sent what and who got what: lost, repeated, out of order
load          publishers of numbered messages, and readers that note them
room          what a scenario works with: buses, a broker, publishers, readers, dice
scenario      what a scenario is, what it promises, and its verdict
brokers       RabbitMQ and the network to it
buses         the bus itself: killed, out of disk, out of descriptors, at the wrong time
subscribers   those that stall, flap, vanish and subscribe a thousand times
publishers    garbage at full speed
soak          long traffic with subscribers that come and go
uptime        a day in minutes: is the bus after it what it was after an hour?
stream        the messages of that day
visits        what comes beside them
============  ====================================================================

Each scenario holds a promise of docs/guarantees.md against a fault.
"""
