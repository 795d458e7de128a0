"""Connects Tenzir, which VAST is called today, to Threat Bus: the command ``vast-threatbus``.

::

    bus ─ App ─> Listening ─> Registry ┬─> LookupTable ─ rows ─────> node
                                      └─> RetroMatching ─ queries ─> node ─┐
                            LiveMatching <─ events with a match ── node    │ hits
                                  └───────────────> Reporting <────────────┘
                                                    (transformation) ─> App ─ sightings ─> bus
                                                                     └> Sink

The rooms; each imports only from those above it:

============  ==========================================================================
config        what may stand in the configuration file
mapping       STIX to keys of the lookup table, hits to sightings; pure
pipelines     the text of every pipeline; no value of an indicator ever goes in there; pure
lines         bytes to lines, of bounded length; pure
counters      what is counted
engine        runs pipelines as processes of ``tenzir``, with rows as their standard input
lifetime      makes such a process end with this one (a program of its own)
registry      which indicators are current
table         the node's lookup table, kept as the registry says
commands      commands of the operator's: the transformation of contexts, the sink
reporting     hits to sightings, to the bus or the sink
live          events as they are imported
retro         events from before
listening     what the bus says, to registry, table and backlog
metrics       a file of measurements
wrapper       all of it, wired
command       the command line
============  ==========================================================================
"""
