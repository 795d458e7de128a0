"""Measurements of the bus beside a bare forwarder; `make bench` prints them as one table."""
