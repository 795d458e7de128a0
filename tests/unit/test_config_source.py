"""Which file is read, how YAML and ``.env`` are, and that values are taken literally."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from dynaconf import Validator
from hypothesis import given
from hypothesis import strategies as st

from threatbus.config import load, read
from threatbus.errors import InvalidConfig
from unit.configs import (
    APPS,
    BACKBONES,
    MINIMAL,
    Plugin,
    RabbitConfig,
    ZmqConfig,
    errors_of,
    from_yaml,
    named,
)

pytestmark = pytest.mark.usefixtures("empty_surroundings")


# Which file is read


def test_config_yaml_in_the_current_directory_is_read_without_being_named() -> None:
    Path("config.yaml").write_text("snapshot_timeout: 7\n")
    assert load(environ={}).content == {"snapshot_timeout": 7}


def test_config_yml_is_read_where_there_is_no_config_yaml() -> None:
    Path("config.yml").write_text("snapshot_timeout: 8\n")
    assert load(environ={}).content == {"snapshot_timeout": 8}


def test_without_a_file_the_environment_alone_counts() -> None:
    source = load(environ={})
    assert source.content == {}
    assert source.file is None


def test_a_path_that_does_not_end_in_yaml_or_yml_is_refused() -> None:
    Path("config.toml").write_text("")
    with pytest.raises(InvalidConfig, match=r"config\.toml: .*yaml or yml"):
        load(Path("config.toml"))


def test_a_named_file_that_is_missing_is_one_error() -> None:
    with pytest.raises(InvalidConfig, match=r"nowhere\.yaml: is not there"):
        load("nowhere.yaml")


def test_a_directory_in_place_of_the_file_is_one_error() -> None:
    Path("config.d.yaml").mkdir()
    with pytest.raises(InvalidConfig, match="not readable"):
        load("config.d.yaml")


def test_broken_yaml_is_one_error_with_line_and_column() -> None:
    with pytest.raises(InvalidConfig, match="line 3, column 7") as caught:
        from_yaml("logging:\n  file: true\n  a: b: c\n")
    assert len(caught.value.errors) == 1


def test_an_unquoted_password_that_breaks_the_yaml_is_not_repeated() -> None:
    [error] = errors_of("password: *hunter2\n")
    assert "line 1, column 11" in error
    assert "hunter2" not in error


def test_a_file_that_is_not_utf8_is_one_error() -> None:
    Path("latin.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(InvalidConfig, match="not UTF-8"):
        load("latin.yaml")


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    Path("bom.yaml").write_bytes(b"\xef\xbb\xbflogging: \n")
    assert load("bom.yaml", environ={}).content == {"logging": None}


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "5\n"])
def test_a_file_that_holds_no_mapping_is_one_error(text: str) -> None:
    [error] = errors_of(text)
    assert error.startswith("given.yaml: ")
    assert "a mapping of settings" in error


def test_a_yaml_tag_is_refused_and_nothing_runs() -> None:
    [error] = errors_of("a: !!python/object/apply:os.system ['touch ran']\n")
    assert "broken YAML at line 1" in error
    assert not Path("ran").exists()


def test_a_tab_that_indents_is_called_by_its_name() -> None:
    [error] = errors_of("plugins:\n\tapps:\n")
    assert "broken YAML at line 2, column 1 (found a tab that" in error


def test_a_key_that_stands_twice_is_an_error_with_its_line() -> None:
    [error] = errors_of("plugins:\n  apps: {}\nlogging: {}\nplugins: {}\n")
    assert "'plugins' stands twice" in error
    assert "line 4" in error


@pytest.mark.parametrize("escape", ["\\ud800", "\\0"])
@pytest.mark.parametrize("text", ['state_directory: "/tmp/{}"\n', '"{}": 1\n', 'a: ["{}"]\n'])
def test_text_that_no_file_name_can_hold_is_an_error_with_its_place(text: str, escape: str) -> None:
    Path("config.yaml").write_text(text.format(escape))
    with pytest.raises(InvalidConfig, match=r"at line 1, column \d+ holds") as caught:
        load(environ={})
    str(caught.value).encode()


def test_endless_nesting_is_an_error_and_no_crash() -> None:
    [error] = errors_of("a: &a [*a]\n")
    assert "given.yaml" in error


def test_two_sections_that_share_a_yaml_anchor_are_told_apart() -> None:
    text = "plugins: {backbones: {inmem: &x {a: 1}}, apps: {zeek: *x}}\n"
    result = from_yaml(text, {"THREATBUS_PLUGINS__APPS__ZEEK__A": "2"})
    assert result.plain_apps["zeek"]["a"] == 2
    assert result.plain_backbones["inmem"]["a"] == 1


def test_yes_and_leading_zeros_are_text_to_whom_text_is_due() -> None:
    text = "{host: h, password: 0123, queue: {durable: no, name_suffix: yes}}"
    rabbit = from_yaml(f"plugins: {{backbones: {{rabbitmq: {text}}}}}\n").backbones["rabbitmq"]
    assert isinstance(rabbit, RabbitConfig)
    assert rabbit.password == "0123"
    assert rabbit.queue.durable is False
    assert rabbit.queue.name_suffix == "yes"


# Values of the file are taken literally


LITERAL = [
    "@foo",
    "@int 5",
    "@bool true",
    "@format {this.logging}",
    "@format {env[HOME]}",
    "@jinja {{ 7 * 7 }}",
    "@json [1]",
    "@none",
    "@del",
    "@merge x=1",
    "@read_file /etc/hostname",
    "@get logging",
    "{braces}",
    "$HOME",
    "${HOME}",
    "%(x)s",
    "a@b",
]


@pytest.mark.parametrize("value", LITERAL)
def test_a_value_of_the_file_is_literal_in_a_section_with_a_schema(value: str) -> None:
    text = f"plugins: {{backbones: {{inmem: }}, apps: {{zmq: {{password: '{value}'}}}}}}\n"
    zmq = from_yaml(text).apps["zmq"]
    assert isinstance(zmq, ZmqConfig)
    assert zmq.password == value


@pytest.mark.parametrize("value", LITERAL)
def test_a_value_of_the_file_is_literal_for_an_old_plugin_with_validators(value: str) -> None:
    zeek = Plugin(
        "zeek",
        None,
        [
            Validator("plugins.apps.zeek.secret", is_type_of=str, must_exist=True),
            Validator("plugins.apps.zeek.port", default=47761),
        ],
    )
    text = f"plugins: {{backbones: {{inmem: }}, apps: {{zeek: {{secret: '{value}'}}}}}}\n"
    result = from_yaml(text, apps=named(zeek))
    assert result.plain_apps["zeek"]["secret"] == value
    assert result.plain_apps["zeek"]["port"] == 47761


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["C"])))
def test_any_text_of_a_mapping_reaches_an_old_plugin_unchanged(value: str) -> None:
    zeek = Plugin("zeek", None, [Validator("plugins.apps.zeek.x", must_exist=True)])
    content = {"plugins": {"backbones": {"inmem": None}, "apps": {"zeek": {"x": value}}}}
    assert read(content, named(zeek), BACKBONES).plain_apps["zeek"]["x"] == value


def test_dynaconfs_own_keys_include_no_file() -> None:
    Path("other.yaml").write_text("snapshot_timeout: 1\n")
    text = MINIMAL + "dynaconf_include: other.yaml\n"
    assert any(error.startswith("dynaconf_include: ") for error in errors_of(text))


def test_files_with_special_names_beside_the_file_are_not_read() -> None:
    for name in ("given.local.yaml", "settings.toml", ".secrets.yaml", "settings.yaml"):
        Path(name).write_text("snapshot_timeout = 1" if "toml" in name else "snapshot_timeout: 1")
    assert from_yaml(MINIMAL).core.snapshot_timeout == 300


# .env


def test_what_dotenv_sets_counts_as_environment() -> None:
    Path("config.yaml").write_text(MINIMAL)
    Path(".env").write_text("export THREATBUS_SNAPSHOT_TIMEOUT='9' # seconds\nOTHER=x\n")
    environ: dict[str, str] = {}
    assert read(load(environ=environ), APPS, BACKBONES).core.snapshot_timeout == 9
    assert environ["OTHER"] == "x"


def test_a_byte_order_mark_is_no_part_of_a_name_in_dotenv() -> None:
    Path(".env").write_bytes(b"\xef\xbb\xbfNAME=x\n")
    assert load(environ={}).environ == {"NAME": "x"}


def test_a_real_variable_wins_over_dotenv() -> None:
    Path("config.yaml").write_text(MINIMAL)
    Path(".env").write_text("THREATBUS_SNAPSHOT_TIMEOUT=9\n")
    source = load(environ={"THREATBUS_SNAPSHOT_TIMEOUT": "3"})
    assert read(source, APPS, BACKBONES).core.snapshot_timeout == 3


def test_dotenv_reaches_the_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREATBUS_DRAIN_TIMEOUT", "to be put back")
    monkeypatch.delenv("THREATBUS_DRAIN_TIMEOUT")
    Path("config.yaml").write_text(MINIMAL)
    Path(".env").write_text("THREATBUS_DRAIN_TIMEOUT=4\n")
    assert read(load(), APPS, BACKBONES).core.drain_timeout == 4
    assert os.environ["THREATBUS_DRAIN_TIMEOUT"] == "4"


def test_a_dotenv_file_further_up_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".env").write_text("THREATBUS_SNAPSHOT_TIMEOUT=9\n")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert "THREATBUS_SNAPSHOT_TIMEOUT" not in load(environ={}).environ


def test_a_dotenv_file_that_is_not_utf8_is_one_error() -> None:
    Path(".env").write_bytes(b"A=\xff\n")
    with pytest.raises(InvalidConfig, match=r"\.env: is not UTF-8"):
        load(environ={})
