"""Services that tests need and that a machine may lack."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

from testbed.rabbit import RabbitNode
from testbed.tenzir import TenzirNode


def missing(what: str) -> NoReturn:
    """Skip the test on a person's machine; fail it under ``CI=true``, where all must be there."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"{what} is missing, and CI must have it")
    pytest.skip(f"{what} is missing")


def program(name: str) -> str:
    """Give the path of an installed program; without it the test is skipped, or fails in CI."""
    return shutil.which(name) or missing(f"the program {name}")


def rabbit_node(settings: str = "", further_port: int | None = None) -> RabbitNode:
    """Give a RabbitMQ node for a ``with`` block; without RabbitMQ as `program`."""
    try:
        return RabbitNode(settings, further_port)
    except FileNotFoundError as error:
        return missing(str(error))


def tenzir_node() -> TenzirNode:
    """Give a Tenzir node for a ``with`` block; without Tenzir as `program`."""
    try:
        return TenzirNode()
    except FileNotFoundError as error:
        return missing(str(error))
