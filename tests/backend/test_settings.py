"""Settings out of the environment."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from gati.errors import RepositoryError
from gati.inference.session import Device
from gati.repository.workspace import workspace
from gati.serve import _samples
from gati.settings import Settings


def test_without_variables_the_defaults_hold(tmp_path: Path) -> None:
    settings = Settings.from_environment({}, tmp_path / "models")
    assert settings.store == str(tmp_path / "models.gati" / "samples")
    assert (settings.store_bytes, settings.audit_share) == (1 << 30, 0.02)
    assert settings.replica == socket.gethostname()
    assert (settings.workers_in("inline"), settings.workers_in("bls")) == (0, 4)


def test_variables_are_taken(tmp_path: Path) -> None:
    environment = {"GATI_STORE": "memory://s", "GATI_STORE_BYTES": "7", "GATI_AUDIT": "1", "GATI_WORKERS": "2"}
    environment |= {"GATI_REPLICA": "pod-0.west", "GATI_STORE_AGE": "12h", "GATI_DEVICE": "cuda:1"}
    environment |= {"GATI_RECORD": "features:2", "GATI_RECORD_SHARE": "0.1", "GATI_BYPASS": "0"}
    expected = Settings("memory://s", 7, 1.0, 2, "pod-0.west", 43_200.0, "features", 2, 0.1, Device("cuda", 1), False)
    assert Settings.from_environment(environment, tmp_path) == expected


def test_samples_go_after_30_days_unless_any_age_is_asked_for(tmp_path: Path) -> None:
    assert Settings.from_environment({}, tmp_path).store_age == 30 * 86_400
    assert Settings.from_environment({"GATI_STORE_AGE": "none"}, tmp_path).store_age is None


@pytest.mark.parametrize(
    ("text", "record"),
    [
        ("inputs", ("inputs", 0)),
        ("nothing", ("nothing", 0)),
        ("features", ("features", 0)),
        ("features:3", ("features", 3)),
    ],
)
def test_what_is_recorded_is_said_in_a_word(tmp_path: Path, text: str, record: tuple[str, int]) -> None:
    settings = Settings.from_environment({"GATI_RECORD": text}, tmp_path)
    assert (settings.record, settings.cut) == record


def test_none_records_nothing(tmp_path: Path) -> None:
    assert Settings.from_environment({"GATI_STORE": "none"}, tmp_path).store is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GATI_AUDIT", "often"),
        ("GATI_AUDIT", "1.5"),
        ("GATI_AUDIT", "-0.1"),
        ("GATI_AUDIT", "nan"),
        ("GATI_WORKERS", "-1"),
        ("GATI_WORKERS", "many"),
        ("GATI_STORE_BYTES", "1 GB"),
        ("GATI_STORE_AGE", "a month"),
        ("GATI_RECORD", "everything"),
        ("GATI_RECORD", "features:-1"),
        ("GATI_RECORD_SHARE", "2"),
        ("GATI_BYPASS", "2"),
        ("GATI_BYPASS", "no"),
        ("GATI_REPLICA", "../elsewhere"),
        ("GATI_REPLICA", ".hidden"),
    ],
)
def test_a_variable_that_makes_no_sense_is_named(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(RepositoryError, match="GATI_"):
        Settings.from_environment({name: value}, tmp_path)


def test_the_workspace_lies_beside_the_repository_however_it_is_reached(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "models")
    assert workspace(tmp_path / "link") == workspace(tmp_path / "models" / ".." / "models") == tmp_path / "models.gati"


@pytest.mark.parametrize(
    ("options", "variables", "writable", "said"),
    [
        ({}, {}, True, "{}.gati/samples"),
        ({}, {}, False, "not kept"),
        ({}, {"GATI_STORE": "s3://key:secret@bucket/samples"}, False, "s3://bucket/samples"),
        ({"GATI_STORE": "/mnt/samples"}, {"GATI_STORE": "none"}, True, "/mnt/samples"),
        ({}, {"GATI_STORE": "none"}, True, "not kept"),
        ({"GATI_RECORD": "nothing"}, {"GATI_RECORD": "inputs"}, True, "not kept"),
        ({}, {"GATI_RECORD_SHARE": "0"}, True, "not kept"),
    ],
)
def test_serve_says_where_samples_go(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, str],
    variables: dict[str, str],
    writable: bool,
    said: str,
) -> None:
    for name in ("GATI_STORE", "GATI_RECORD", "GATI_RECORD_SHARE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert _samples(tmp_path, not writable, options) == said.format(tmp_path)
