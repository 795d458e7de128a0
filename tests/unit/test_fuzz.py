"""A short run of each fuzz target, and that a run finds what there is to find."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from fuzz import short
from fuzz.mutation import mutate
from fuzz.targets import CORPUS, TARGETS

#: Seconds per target; `make fuzz` takes longer.
SECONDS = 0.5
SEED = 20261124


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_is_taken_or_refused_as_it_should_be(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    done = short.run(target.make(), seeds, seed=SEED, seconds=SECONDS, runs=20_000)
    assert done >= len(seeds)


def test_each_directory_of_the_corpus_has_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


def test_a_run_finds_the_input_that_a_decoder_stumbles_over() -> None:
    def careless(data: bytes) -> None:
        try:
            found: Any = json.loads(data)
        except (ValueError, RecursionError):
            return
        if isinstance(found, dict) and "count" in found:
            assert found["count"] != 2**64

    with pytest.raises(short.Finding) as caught:
        short.run(careless, [b'{"count": 1}'], seed=1, runs=100_000)
    assert json.loads(caught.value.data)["count"] == 2**64


def test_a_fast_path_that_is_lax_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from threatbus.fastpath import FastPath  # noqa: PLC0415

    monkeypatch.setattr(FastPath, "recognise", lambda _, documents: ["stix2/indicator"])
    target = TARGETS["border"]
    with pytest.raises(short.Finding):
        short.run(target.make(), target.seeds(), seed=1, runs=2000)


def test_the_same_seed_gives_the_same_inputs() -> None:
    seeds = [b'{"a": [1, "b"]}', b"stix2/indicator {}"]
    first, second = random.Random(5), random.Random(5)
    inputs = [mutate(seeds[0], first, seeds) for _ in range(200)]
    assert inputs == [mutate(seeds[0], second, seeds) for _ in range(200)]
    assert len(set(inputs)) > 100


def test_a_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in Path(CORPUS).rglob("*")) < 500_000
