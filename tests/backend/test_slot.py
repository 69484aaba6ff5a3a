"""Places of servers beside a repository, and what else servers share there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gati.errors import PublishError
from gati.repository.secret import read_or_create_token
from gati.repository.workspace import workspace
from gati.triton.slot import Slot, running

PORTS = {"grpc": 1, "http": 2, "metrics": 3}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    workspace(tmp_path / "models").mkdir()
    return tmp_path / "models"


def place(repository: Path) -> Slot:
    return Slot(workspace(repository))


def test_a_token_that_is_none_opens_nothing(repository: Path) -> None:
    token = workspace(repository) / "token"
    token.touch()
    with pytest.raises(PublishError, match="holds no token"):
        read_or_create_token(repository)
    assert not token.read_bytes(), "it may be somebody else's, mounted here"


def test_every_server_has_a_place_of_its_own_and_the_first_free_one(repository: Path) -> None:
    first, second = place(repository), place(repository)
    assert (first.log.name, second.log.name) == ("server.log", "server-2.log")
    first.announce(os.getpid(), PORTS)
    assert running(repository) == [PORTS]
    first.release()
    assert running(repository) == []
    again = place(repository)
    assert again.log == first.log
    again.announce(os.getpid(), PORTS)
    first.release()  # as a second stop does
    assert running(repository) == [PORTS]
    second.release()
    again.release()


def test_a_place_is_free_again_when_its_holder_was_killed(repository: Path) -> None:
    code = (
        "import os, sys, pathlib; from gati.triton.slot import Slot\n"
        f"slot = Slot(pathlib.Path(sys.argv[1])); slot.announce(os.getpid(), {PORTS})\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(workspace(repository))], check=False, timeout=60)
    assert (workspace(repository) / "server.json").exists()
    assert running(repository) == []
    slot = place(repository)
    assert slot.log.name == "server.log"
    slot.release()


def test_a_server_on_another_host_is_not_found_here(repository: Path) -> None:
    slot = place(repository)
    slot.announce(os.getpid(), PORTS)
    file = workspace(repository) / "server.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"host": "elsewhere"}))
    assert running(repository) == []
    slot.release()


def test_servers_that_start_at_once_share_one_token(repository: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        tokens = set(pool.map(read_or_create_token, [repository] * 8))
    assert len(tokens) == 1
    assert len(tokens.pop()) > 20
