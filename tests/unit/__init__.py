"""Tests of one part at a time, without sockets but for its own."""
