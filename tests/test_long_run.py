"""The crowd's script, small: it ends well where all is equal, and with what differs where something was changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from sessions.recording import encode, read
from sessions.records import Chunk
from tests import long_run

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def test_a_crowd_is_recorded_and_made_again(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    options = ["--bots", "6", "--chunks", "60", "--seed", "3", "--keep", str(kept)]
    done = subprocess.run([sys.executable, "-m", "tests.long_run", *options], cwd=ROOT, capture_output=True, text=True)
    assert (kept / "saves" / "live").is_dir(), "it does not share the saves of whoever runs it"
    assert done.returncode == 0 and done.stdout.endswith("every digest is equal\n"), done.stdout + done.stderr
    recordings = {path: read(path.read_bytes()) for path in sorted(kept.glob("*.mwrec"))}
    assert len(recordings) >= 6 and sum(len(each.chunks) for each in recordings.values()) >= 60
    changed = next(path for path, each in recordings.items() if len(each.chunks) > 3)
    records = list(recordings[changed].records)
    at = next(i for i, record in enumerate(records) if isinstance(record, Chunk) and record.chunk == 2)
    records[at] = msgspec.structs.replace(records[at], digest=bytes(16))
    changed.write_bytes(b"".join(encode(record) for record in records))
    (found,) = long_run.verify([changed], "pattern")
    assert found.startswith(f"{changed.name}: differs, chunk 2")
    assert long_run.verify(list(recordings), "pattern", "--together") == [found]
