"""The command line: what is listed, what is imported, how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import pytest

from gati import cli
from gati.errors import RepositoryError
from gati.options import OutputFile, write_json

HEAVY = "torch", "tritonclient", "onnx", "onnxruntime", "pyarrow", "scipy", "matplotlib", "gati_export"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The program that was installed."""
    command = [str(Path(sys.executable).with_name("gati")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_help_lists_every_command_and_imports_none() -> None:
    code = (
        "import sys; from gati.cli import main\n"
        "try: main(['--help'])\n"
        f"finally: print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
    listed = [line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line.strip()]
    assert listed == list(cli.COMMANDS)


def test_nobody_who_asks_how_a_command_is_used_waits_for_what_cuts_and_trains() -> None:
    code = (
        "import sys; from gati.cli import COMMANDS, gati\n"
        "for name in COMMANDS: gati.get_command(None, name)\n"
        "print([m for m in ('torch', 'matplotlib', 'onnx_ir', 'sympy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: gati {name} ")
    assert "--json" in out


def test_a_result_is_never_read_half_written(tmp_path: Path) -> None:
    path, long = tmp_path / "said.json", ["word" * 1000] * 100
    write_json(path, long)
    reader = path.open()
    write_json(path, [])
    assert json.load(reader) == long and json.loads(path.read_text()) == []
    os.mkfifo(pipe := tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        write_json(pipe, ["short"])
        assert json.loads(read.result(10)) == ["short"]


@pytest.mark.parametrize(
    ("set_", "spared"),
    [({}, "localhost,127.0.0.1,::1"), ({"NO_PROXY": "a.b"}, "a.b,localhost,127.0.0.1,::1"), ({"no_proxy": "*"}, "*")],
)
def test_no_proxy_is_asked_for_this_machine(
    set_: dict[str, str], spared: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert os.environ["no_proxy"] == spared
    monkeypatch.setenv("no_proxy", "")  # undone as the test ends


def test_a_result_that_could_not_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path, fits in {
        tmp_path / "file": True,
        tmp_path / "new" / "folder" / "result.json": True,
        Path(os.devnull): True,
        tmp_path / "file" / "result.json": False,
        tmp_path: False,
    }.items():
        if fits:
            assert OutputFile().convert(str(path), None, None) == path
        else:
            with pytest.raises(click.BadParameter, match=r"can't be written: .*file is no folder|is a directory"):
                OutputFile().convert(str(path), None, None)


def test_a_command_that_lacks_something_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich.live", None)
    monkeypatch.delitem(sys.modules, "gati_export.commands.status", raising=False)
    with pytest.raises(SystemExit) as ended:
        cli.main(["status"])
    assert ended.value.code == 1 and "pip install -c constraints.txt '.[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["fly"], id="unknown command"),
        pytest.param(["serve"], id="argument missing"),
        pytest.param(["serve", ".", "--grpc-port", "many"], id="port that is no number"),
        pytest.param(["serve", ".", "--audit", "2"], id="share above 1"),
        pytest.param(["serve", "no-such-folder"], id="folder missing"),
        pytest.param(["serve", ".", "--device", "gpu"], id="no device"),
        pytest.param(["refresh", "m"], id="option missing"),
        pytest.param(["rollback", "m", "--repository", ".", "--server", "here"], id="address without port"),
        pytest.param(["status"], id="nothing named"),
        pytest.param(["--colour"], id="unknown option"),
    ],
)
def test_wrong_use_ends_with_2_and_says_how_it_is_used(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("Usage: gati")
    assert "Error: " in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["status", "m", "--metrics", "here"], "'here' is not HOST:METRICS_PORT, such as localhost:8002."),
        (["report", "m", "--repository", ".", "--metrics", "a:1,b"], "'b' is not HOST:METRICS_PORT"),
        (
            ["rollback", "m", "--repository", ".", "--server", "a:b"],
            "'a:b' is not HOST:GRPC_PORT, such as localhost:8001.",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_address_that_is_none_is_told_with_what_it_should_be(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert says in capsys.readouterr().err


def test_a_failure_is_one_sentence_and_ends_with_1() -> None:
    done = run("status", "ghost", "--repository", str(Path(__file__).parent))
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert "has no chain ghost" in done.stderr


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_where(place: str) -> None:
    arguments = ["status", "ghost", "--repository", str(Path(__file__).parent)]
    done = run(*(["--debug", *arguments] if place == "before" else [*arguments, "--debug"]))
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RepositoryError("It is broken."), "Error: It is broken."),
        (FileNotFoundError(2, "No such file", "/a"), "Error: No such file: /a"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            "Error: Something is not installed that this needs (No module named 'torch'): see README on installing it.",
        ),
        (RuntimeError("odd"), "Error: RuntimeError: odd (this should not happen; --debug shows where)"),
    ],
    ids=["expected", "system", "missing", "bug"],
)
def test_errors_of_each_kind_have_their_words(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise error

    monkeypatch.setattr(cli.gati, "main", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == says + "\n"


def test_an_interrupted_command_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.gati, "main", interrupt)
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 130
