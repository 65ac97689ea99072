"""Protects the command: one line says where to play, a failure is a sentence and an exit code, signals end it well."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gameserver import cli, serve
from gameserver.app import ServeError
from gameserver.engine import LoadWorld
from gameserver.journal import Keep
from world.chunk import Report, World, WorldError


@contextmanager
def served(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process and its URL, as its last line says it."""
    command = [sys.executable, "-m", "gameserver", "serve", "--world", "pattern", "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Open http://localhost:"), line
        yield process, line.split()[1]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serves_until_a_signal_and_ends_well(number: signal.Signals) -> None:
    with served("--players", "2") as (process, url):
        with urllib.request.urlopen(url + "readyz", timeout=10) as answer:
            assert answer.status == 200
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=15)
        assert process.returncode == 0
        assert "Traceback" not in errors and "Going down" in errors


def test_a_save_that_does_not_fit_is_told_at_the_start(tmp_path: Path) -> None:
    with served("--save-dir", str(tmp_path), "--save-gb", "1e-7") as (process, _):
        process.send_signal(signal.SIGTERM)
        assert "--save-gb 1e-07 is too small for a save of this world" in process.communicate(timeout=20)[1]


def test_a_port_in_use_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--world", "pattern", "--port", str(port)]) == 1
    told = capsys.readouterr()
    assert told.err == f"gameserver: port {port} on 127.0.0.1 is in use: choose another with --port\n" and not told.out


def test_a_world_that_cannot_be_loaded_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loader(path: str | None, num_slots: int, spread: serve.Spread, tell: object, or_fewer: bool) -> LoadWorld:
        def load(report: Report) -> World:
            raise WorldError(f"{path} has no weights")

        return load

    monkeypatch.setattr(serve, "world_loader", loader)
    assert cli.main(["serve", "--world", "somewhere", "--port", "0"]) == 1
    errors = capsys.readouterr().err
    assert errors.splitlines()[-1] == "gameserver: somewhere has no weights" and "Traceback" not in errors


def test_records_where_it_is_told_or_where_the_user_keeps_things(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def keep(*options: str) -> Keep | None:
        return serve.recordings(cli.parser().parse_args(["serve", *options]))

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert keep() == Keep(tmp_path / "manyworlds" / "recordings", 2 * 10**9, 14 * 86400)
    own = keep("--record-dir", str(tmp_path / "own"), "--record-gb", "0.5", "--record-days", "1")
    assert own == Keep(tmp_path / "own", 500_000_000, 86400) and own.directory.is_dir()
    assert keep("--no-record") is None
    (tmp_path / "file").touch()
    with pytest.raises(ServeError, match=r"cannot record in .*file"):
        keep("--record-dir", str(tmp_path / "file"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    assert keep() is None and "not recorded" in caplog.text, "no reason not to serve"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "fly",
        "serve --port 70000",
        "serve --port x",
        "serve --players 0",
        "bench --players 1,0",
        "bench --chunks x",
        "replay",
        "replay x --to -1",
        "serve --record-gb 0",
        "serve --ranks 0",
        "serve --ranks 2 --gpus 2",
        "bench --ranks 2 --weights some",
        "serve --park-gb 0",
        "serve --no-park --park-gb 3",
        "memory --budget-gb 0",
        "memory --players 0",
        "clip --seconds 1",
    ],
)
def test_a_wrong_command_line_is_code_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(line.split())
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: gameserver")


@pytest.mark.parametrize("command", ["", "serve", "bot", "bench", "memory", "replay", "clip"])
def test_help_names_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    options = {
        "": "serve bot bench memory replay clip",
        "serve": "--host --port --world --players --record-dir --no-record --park-gb --no-park --realtime-only",
        "bot": "--seconds --script --save",
        "memory": "--world --players --budget-gb --dtype --ranks --weights --json",
        "replay": "--verify --together --video --overlay --from --to --world --json",
        "clip": "--out --jobs --prompt --image --poses --script --seconds --world --slots --json",
    }
    assert all(option in told for option in options.get(command, "--world --players --json").split())


def test_the_command_does_not_import_torch_until_a_world_needs_it() -> None:
    check = "import gameserver.cli, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], timeout=60).returncode == 0
