"""Protects `gameserver memory` and the refusal of a server whose players would not fit."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from gameserver import cli, serve
from gameserver.app import ServeError
from gameserver.serve import Spread, world_loader
from tests.tiny_checkpoints import Tiny, write
from world import loader
from world.chunk import PRECISIONS, Precision, WorldError, precision_in


def said(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert cli.main(["memory", *options]) == 0
    return capsys.readouterr().out


def test_the_table_adds_up_and_says_what_a_budget_holds(capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(said(capsys, "--players", "1,3,12", "--budget-gb", "0.3", "--dtype", "bfloat16", "--json"))
    assert (told["world"], told["picture"], told["dtype"]) == ("meadow", "224x128", "bfloat16")
    slot, players = sum(told["slot"].values()), {row["players"]: row for row in told["results"]}
    assert [players[n]["slab_bytes"] for n in (1, 3, 12)] == [n * slot + told["spare_bytes"] for n in (1, 3, 12)]
    work = told["work"]
    rows = 8 * max(work[part] for part in ("begin", "forward", "decode"))  # of this size all are decoded at once
    assert told["decode_rows"] == 8 and players[12]["work_bytes"] == rows + 2 * work["picture"]
    for row in players.values():
        assert row["weight_bytes"] == sum(told["weights"].values())
        assert row["total_bytes"] == sum(row[f"{part}_bytes"] for part in ("weight", "slab", "other", "work"))
    fit = told["players_in_budget"]
    assert players[1]["total_bytes"] < told["budget_bytes"] == 300_000_000 and 1 < fit < 12


def test_a_person_reads_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "--players", "2,4", "--budget-gb", "0.001", "--dtype", "float32").splitlines()
    assert lines[0] == "meadow, 224x128, float32: computed from shapes, not measured"
    assert "keys and values" in lines[2] and [line.split()[0] for line in lines[-4:-2]] == ["2", "4"]
    assert lines[-1] == "1 MB hold no players."


def test_a_checkpoint_is_planned_by_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write(tmp_path, Tiny("v1"))
    told = json.loads(said(capsys, "--world", str(checkpoint), "--json"))
    assert told["world"] == "lingbot-world-fast-v1" and told["weights"]["text encoder"] > 0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_server_says_its_plan_and_loads(monkeypatch: pytest.MonkeyPatch, precision: Precision) -> None:
    told: list[str] = []
    monkeypatch.setattr(loader, "memory_there", lambda *spread: 10**10)
    world = world_loader("meadow", 2, Spread(precision=precision), told.append)(lambda stage, share: None)
    assert world.num_slots == 2 and precision_in(world.identify(lambda *_: None).arithmetic["dtype"]) == precision
    assert len(told) == 1 and told[0].startswith("Memory, computed: ") and "10 GB hold " in told[0]


def test_a_server_whose_players_do_not_fit_ends_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loader, "memory_there", lambda *spread: 200_000_000)
    options = ["--players", "50", "--port", "0", "--no-record", "--no-save"]
    assert cli.main(["serve", "--world", "meadow", *options]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("gameserver: 200 MB of free memory hold ") and "of meadow, not 50: " in last
    logging.getLogger().handlers.clear()


def test_without_a_number_of_players_as_many_are_seated_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    plan = loader.plan_world("meadow", 8)
    monkeypatch.setattr(loader, "memory_there", lambda *spread: plan.total_bytes(3))
    load = world_loader("meadow", 8, tell=told.append, or_fewer=True)
    assert load(lambda stage, share: None).num_slots == 3
    assert " hold 3 players. Seats: 3 instead of 8." in told[0] and ", 3 players and a spare slot " in told[0]
    with pytest.raises(WorldError, match="hold 3 players of meadow, not 8"):
        world_loader("meadow", 8, tell=told.append)(lambda stage, share: None)
    monkeypatch.setattr(loader, "memory_there", lambda *spread: plan.total_bytes(1) - 1)
    with pytest.raises(WorldError, match="do not hold meadow"):
        load(lambda stage, share: None)
    monkeypatch.setattr(loader, "memory_there", lambda *spread: plan.total_bytes(8))
    assert load(lambda stage, share: None).num_slots == 8 and not told[-1].endswith("of 8.")


def test_only_a_number_that_was_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bool]] = []

    def loading(path: str, players: int, spread: Spread, tell: object, or_fewer: bool) -> None:
        asked.append((players, or_fewer))
        raise ServeError("far enough")

    monkeypatch.setattr(serve, "world_loader", loading)
    for options in ([], ["--players", "8"], ["--players", "3"]):
        assert cli.main(["serve", "--no-record", "--no-save", *options]) == 1
    assert asked == [(8, True), (8, False), (3, False)]
    logging.getLogger().handlers.clear()


def test_where_nobody_knows_the_memory_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(loader, "memory_there", lambda *spread: None)

    def load(*args: object) -> None:
        raise WorldError("far enough")

    monkeypatch.setattr(loader, "load_world", load)
    with pytest.raises(WorldError, match="far enough"):
        world_loader("meadow", 200, tell=told.append)(lambda stage, share: None)
    assert told[0].endswith("a player.")
