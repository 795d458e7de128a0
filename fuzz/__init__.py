"""Fuzzing of whatever reads bytes from outside: one target per door.

============  ====================================================================
targets       what is fuzzed, and what must hold for any input whatever
mutation      makes an input out of another one, by its JSON tree or its bytes
campaign      one target under atheris, in a process of its own, guided by coverage
short         many inputs in this process, without atheris: what the test suite runs
============  ====================================================================

Inputs to begin with are in ``tests/corpus``, a directory per target.
"""
