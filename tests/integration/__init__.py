"""Tests of whole buses, with real peers."""
