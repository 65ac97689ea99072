"""The wheel: what is in it, and that it serves from an empty directory, far from the source tree."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("gameserver", "sessions", "world", "web_client")
SHIPPED = {".py", ".html", ".js", ".css", ".svg", ".json", ".safetensors", ".md"}
WEIGHTS = "world/meadow/world.safetensors"
WEIGHTS_MB = 40
READY_S = 120.0  # seconds on an idle machine; this is for a busy one

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * READY_S)]


def run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def pip(*arguments: str | Path) -> None:
    """Without a network: everything that it needs is here."""
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, "--no-index", "--no-deps")


def files_of(directory: Path) -> set[str]:
    found = (path for package in PACKAGES for path in (directory / package).rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix() for path in found if path.suffix in SHIPPED}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves files of earlier builds in a tree, and puts them into the next wheel."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-build-isolation", "--wheel-dir", built, source)
    (path,) = built.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--target", target, wheel)
    return target


@pytest.fixture
def elsewhere(installed: Path, tmp_path: Path) -> dict[str, Any]:
    """Where and how to start a process that finds the installed packages first and the source tree not at all."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return {"cwd": tmp_path, "env": kept | {"PYTHONPATH": str(installed)}}


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert set(names) == files_of(ROOT)
    assert {WEIGHTS, "web_client/index.html", "web_client/main.js", "web_client/style.css"} <= set(names)
    assert (ROOT / WEIGHTS).stat().st_size <= WEIGHTS_MB * 1e6


def test_the_wheel_says_what_the_project_says(wheel: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with ZipFile(wheel) as archive:
        info = f"{project['name']}-{project['version']}.dist-info"
        metadata = HeaderParser().parsestr(archive.read(f"{info}/METADATA").decode())
        license_text = archive.read(f"{info}/licenses/LICENSE").decode()
    assert (metadata["Name"], metadata["Version"]) == (project["name"], project["version"])
    assert metadata["License-Expression"] == "Apache-2.0" and "Apache License" in license_text
    required = {re.split(r"\W", line)[0] for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert required == {"torch", "numpy", "safetensors", "av", "websockets", "msgspec", "msgpack"}


@pytest.fixture
def served(installed: Path, elsewhere: dict[str, Any], tmp_path: Path) -> Iterator[str]:
    """The address of a server that was started by the installed command and says that it can be played on."""
    log = tmp_path / "server.log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [installed / "bin" / "gameserver", "serve", "--port", "0", "--players", "2"],
            stdout=subprocess.PIPE, stderr=stderr, text=True, **elsewhere,
        ) as server,
    ):  # fmt: skip
        patience = threading.Timer(READY_S, server.kill)
        patience.start()
        try:
            said = re.search(r"http://\S+/", server.stdout.readline())
            patience.cancel()
            assert said, log.read_text()
            yield said[0]
        finally:
            patience.cancel()
            server.terminate()
    assert server.returncode == 0, log.read_text()


def test_an_installed_wheel_serves_its_page_and_its_world(
    served: str, installed: Path, elsewhere: dict[str, Any]
) -> None:
    where = "import gameserver, sessions, web_client, world.meadow as m; print(gameserver, sessions, web_client, m)"
    paths = re.findall(r"from '(.*?)'", run(sys.executable, "-c", where, **elsewhere))
    assert len(paths) == 4 and all(Path(path).is_relative_to(installed) for path in paths), paths

    with urlopen(f"{served}readyz") as answer:
        assert answer.status == 200
    with urlopen(served) as page:
        assert page.read() == (installed / "web_client" / "index.html").read_bytes()
    with urlopen(f"{served}world.json") as answer:
        about = json.load(answer)
    assert about["name"] == "meadow" and about["ready"] and about["scenes"]
    with urlopen(served + about["scenes"][0]["thumbnail"].removeprefix("/")) as thumbnail:
        assert thumbnail.read().startswith(b"\xff\xd8")
