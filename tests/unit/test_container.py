"""The container files are what their engines take, as far as that can be seen without one."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path
from typing import Any, Final

import pytest
from dockerfile_parse import DockerfileParser

from threatbus import config
from threatbus.cli import _parser
from threatbus.config import yaml12
from threatbus.hookspecs import APP_GROUP, BACKBONE_GROUP
from threatbus.plugins import installed

ROOT: Final = Path(__file__).parents[2]
CONTAINER: Final = ROOT / "packaging/container"
#: Instructions of a Dockerfile, docs.docker.com/reference/dockerfile.
INSTRUCTIONS: Final = {
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL",
    "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
}  # fmt: skip
COMPOSE: Final[dict[str, Any]] = yaml12.parse(
    (CONTAINER / "compose.yaml").read_text(), "compose.yaml"
)
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]
NODES: Final = [name for name in SERVICES if name.startswith("node-")]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage, with what follows them."""
    parser = DockerfileParser(str(CONTAINER / "Dockerfile"), cache_content=True)
    found: list[list[tuple[str, str]]] = []
    for each in parser.structure:
        if each["instruction"] == "FROM":
            found.append([])
        if each["instruction"] != "COMMENT":
            found[-1].append((each["instruction"], each["value"]))
    return found


def values(stage: list[tuple[str, str]], instruction: str) -> list[str]:
    return [value for name, value in stage if name == instruction]


def command_of(words: list[str]) -> argparse.Namespace:
    """Parse a command line of ours; fails where the command itself would."""
    assert words[0] == "threatbus"
    return _parser().parse_args(words[1:])


def test_the_image_is_built_in_stages_of_known_instructions() -> None:
    build, final = stages()
    assert {name for name, _ in build + final} <= INSTRUCTIONS
    assert values(build, "FROM")[0].endswith(" AS build")
    assert values(build, "FROM")[0].split()[0] == values(final, "FROM")[0]


def test_all_that_is_copied_is_there_and_not_ignored() -> None:
    allowed = re.findall(r"(?m)^!(.+)$", (CONTAINER / "Dockerfile.dockerignore").read_text())
    for stage in stages():
        for value in values(stage, "COPY"):
            *sources, _ = shlex.split(value)
            if sources[0].startswith("--from="):
                assert sources[0] == "--from=build"
                continue
            for source in sources:
                assert (ROOT / source).exists(), source
                assert source.split("/")[0] in allowed, source


def test_the_image_does_not_run_as_root_and_its_health_is_asked_for() -> None:
    final = stages()[-1]
    (user,) = values(final, "USER")
    assert int(user) > 0
    made = next(value for value in values(final, "RUN") if f"--uid {user}" in value)
    assert "install -d -o threatbus" in made
    (health,) = values(final, "HEALTHCHECK")
    asked = command_of(json.loads(health.partition("CMD ")[2]))
    assert asked.command.__module__ == "threatbus.cli.status"
    (entry,), (default,) = values(final, "ENTRYPOINT"), values(final, "CMD")
    run = command_of([*json.loads(entry), *json.loads(default)])
    assert run.command.__module__ == "threatbus.cli.run"
    assert run.config == asked.config


def test_compose_runs_rabbitmq_and_two_nodes_each_with_a_health_check() -> None:
    assert set(SERVICES) == {"rabbitmq", "node-a", "node-b"}
    for service in SERVICES.values():
        assert service["healthcheck"]["test"][0] == "CMD"
        assert {"interval", "timeout"} <= set(service["healthcheck"])


@pytest.mark.parametrize("node", NODES)
def test_a_node_waits_for_a_rabbitmq_that_is_healthy(node: str) -> None:
    service = SERVICES[node]
    assert service["depends_on"]["rabbitmq"]["condition"] == "service_healthy"
    health = command_of(service["healthcheck"]["test"][1:])
    assert health.command.__module__ == "threatbus.cli.status"
    build = service["build"]
    assert (CONTAINER / build["context"] / build["dockerfile"]).resolve().is_file()
    assert service["read_only"] is True


@pytest.mark.parametrize("node", NODES)
def test_the_configuration_of_a_node_is_valid_and_fits_what_is_published(node: str) -> None:
    service = SERVICES[node]
    mounts = [each.split(":") for each in service["volumes"]]
    (file,) = [source for source, target, *_ in mounts if target == "/etc/threatbus/config.yaml"]
    volumes = [source for source, *_ in mounts if not source.startswith(".")]
    assert set(volumes) <= set(COMPOSE["volumes"])
    environ = dict.fromkeys(service["environment"], "a password")
    source = config.load(CONTAINER / file, environ=environ)
    checked = config.read(source, installed(APP_GROUP), installed(BACKBONE_GROUP))
    assert not [each for each in checked.warnings if "THREATBUS" in each]
    broker: Any = checked.backbones["rabbitmq"]
    assert broker.host in SERVICES
    assert broker.password == "a password"
    assert broker.username == SERVICES["rabbitmq"]["environment"]["RABBITMQ_DEFAULT_USER"]
    assert broker.queue.name_suffix == node
    zmq: Any = checked.apps["zmq"]
    (published,) = service["ports"]
    address, outside, inside = published.split(":")
    assert address == "127.0.0.1"
    assert outside == inside == f"{zmq.manage}-{zmq.sub}"
