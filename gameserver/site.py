"""The plain HTTP answers beside the WebSocket, all from memory: the page, what there is to play, and how it goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from gameserver.door import Door
from gameserver.encoder import encode_still
from gameserver.engine import Phase
from gameserver.metrics import Metric, counter, counters, gauge, render
from gameserver.static import Asset, asset, load_assets
from world.chunk import Scene

PLAY = "/play"
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'self'; connect-src 'self' ws: wss:; "  # older browsers do not take ws: for 'self'
        "object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
}
NO_STORE = "no-store"


class Site:
    def __init__(self, door: Door) -> None:
        self._door = door
        self._assets = load_assets()
        self._thumbnails: dict[str, Asset] = {}  # by scene, made when first asked for
        self._pages: dict[str, Callable[[], Response]] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/world.json": self._world,
            "/metrics": self._metrics,
        }

    def answer(self, request: Request) -> Response | None:
        """None: this one wants a WebSocket and may have it."""
        path = request.path.partition("?")[0]
        if path == PLAY and "upgrade" in request.headers.get("Connection", "").lower():
            return None
        if request.method not in ("GET", "HEAD"):
            response = _text(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are answered here\n")
            response.headers["Allow"] = "GET, HEAD"
        elif path == PLAY:
            response = _text(HTTPStatus.UPGRADE_REQUIRED, "the game is spoken over a WebSocket\n")
            response.headers["Upgrade"] = "websocket"
        elif (page := self._pages.get(path)) is not None:
            response = page()
        elif (file := self._assets.get(path) or self._thumbnail(path)) is not None:
            response = _file(file, request.headers.get("If-None-Match"))
        else:
            response = _text(HTTPStatus.NOT_FOUND, "there is nothing here\n")
        if request.method == "HEAD":
            response.body = b""
        return response

    def _healthz(self) -> Response:
        """Whether the engine advances; a supervisor restarts what answers 503."""
        engine = self._door.engine
        fault = engine.unhealthy(engine.now_s())
        return _json(
            {"ok": fault is None, "phase": engine.phase, "loops": engine.loops, "ticks": engine.ticks, "fault": fault},
            HTTPStatus.OK if fault is None else HTTPStatus.SERVICE_UNAVAILABLE,
        )

    def _readyz(self) -> Response:
        """Whether a player could come in: prewarmed, healthy and a seat free; a balancer looks here."""
        engine, players, capacity = self._door.engine, len(self._door.lobby), self._door.lobby.capacity
        plays = self._door.is_open and engine.unhealthy(engine.now_s()) is None
        parked = 0 if engine.parking is None else len(engine.parking)
        ready = plays and players - parked + self._door.lobby.reserved < capacity
        return _json(
            {"ready": ready, "phase": engine.phase, "players": players, "capacity": capacity},
            HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE,
        )

    def _world(self) -> Response:
        door = self._door
        progress = door.engine.progress
        ready = door.is_open
        world = door.engine.world
        about: dict[str, object] = {
            "name": None if world is None else world.name,
            "ready": ready,
            "progress": {"stage": progress.stage, "share": progress.share},
            "players": len(door.lobby),
            "capacity": door.lobby.capacity,
            "scenes": [] if world is None else [_about_scene(scene) for scene in world.scenes],
            "draws": world is not None and world.draw_start is not None,
        }
        if world is not None:
            geometry = world.geometry
            about |= {"width": geometry.width, "height": geometry.height, "fps": geometry.fps}
        return _json(about)

    def _thumbnail(self, path: str) -> Asset | None:
        scene_id = path.removeprefix("/scenes/").removesuffix(".jpg")
        world = self._door.engine.world
        if world is None or path != _thumbnail_path(scene_id):
            return None
        if scene_id not in self._thumbnails:
            scene = next((scene for scene in world.scenes if scene.id == scene_id), None)
            if scene is None:
                return None
            self._thumbnails[scene_id] = asset("image/jpeg", encode_still(scene.image))
        return self._thumbnails[scene_id]

    def _metrics(self) -> Response:
        body = render(_measure(self._door)).encode()
        return _response(HTTPStatus.OK, "text/plain; version=0.0.4; charset=utf-8", body, NO_STORE)


def _about_scene(scene: Scene) -> dict[str, str]:
    return {"id": scene.id, "title": scene.title, "prompt": scene.prompt, "thumbnail": _thumbnail_path(scene.id)}


def _thumbnail_path(scene_id: str) -> str:
    return f"/scenes/{scene_id}.jpg"


def _measure(door: Door) -> list[Metric]:
    counts, engine, game = door.counts, door.engine, door.engine.counters
    metrics = [
        gauge("ready", "1 once the world is prewarmed.", float(engine.phase is Phase.READY)),
        gauge("players", "Seats taken.", len(door.lobby)),
        gauge("capacity", "Seats.", door.lobby.capacity),
        counter("engine_loops_total", "Turns of the engine's loop.", engine.loops),
        counter("ticks_total", "Ticks that ran a forward.", engine.ticks),
        counter("connections_total", "WebSockets opened.", counts.connections),
        counter("sessions_total", "Sessions begun.", counts.sessions),
        counter("sessions_resumed_total", "Sessions continued by a new connection.", counts.resumed),
        counter("frames_sent_total", "Frames encoded and sent.", counts.frames_sent),
        counter("frames_skipped_total", "Frames skipped before encoding.", counts.frames_skipped),
        counter("bytes_sent_total", "Bytes of messages sent.", counts.bytes_sent),
        counter("replies_dropped_total", "Replies to clients that do not read.", counts.replies_dropped),
        counter("spectators_total", "Spectators let in.", counts.watching),
        counter("packets_relayed_total", "Packets sent to spectators.", counts.packets_relayed),
        counter(
            "packets_unrelayed_total",
            "Packets that spectators missed, waiting for a key frame.",
            counts.packets_unrelayed,
        ),
        counter("chunks_undelivered_total", "Chunks dropped between the threads.", counts.chunks_undelivered),
        counters("errors_total", "Errors told to clients.", "code", counts.errors),
        counters("letters_coalesced_total", "Letters taken in by a later one.", "kind", door.mailbox.coalesced),
        counters("letters_refused_total", "Letters over their quota.", "kind", door.mailbox.refused),
    ]
    if door.recorder is not None:
        written = door.recorder.counts
        metrics += [
            counter("recordings_total", "Recordings begun.", written.recordings),
            counter("recordings_lost_total", "Recordings that the disk did not take.", written.lost),
            counter(
                "recordings_removed_total", "Old recordings removed for their age or to make room.", written.removed
            ),
            counter("records_total", "Records written.", written.records),
            counter("record_bytes_total", "Bytes of records written.", written.bytes),
            counter(
                "records_given_up_total", "Records that frames did not wait for, as the disk stalled.", written.given_up
            ),
            counter("record_syncs_total", "Files synced to the disk.", written.syncs),
            counter("record_syncs_failed_total", "Syncs that failed.", written.unsynced),
        ]
    if door.saves is not None:
        saved = door.saves.counts
        metrics += [
            counter("saves_total", "Saves written.", saved.saved),
            counter("saves_refused_total", "Saves for which there was no room.", saved.refused),
            counter("saves_failed_total", "Saves that the disk did not take.", saved.failed),
            counter("saves_removed_total", "Saves removed for their age.", saved.removed),
            counter("moments_kept_total", "Automatic saves of sessions under way.", saved.moments),
            counter("moments_skipped_total", "Automatic saves that there was no room for.", saved.moments_skipped),
        ]
    if door.recovery is not None:
        back = door.recovery.counts
        metrics += [
            counter("sessions_lost_total", "Sessions that a crash had left behind.", back.found),
            counter("sessions_recovered_total", "Sessions brought back after a crash.", back.recovered),
            counter("recoveries_failed_total", "Sessions that could not be brought back.", back.failed),
            counter("recoveries_expired_total", "Sessions nobody came back for.", back.expired),
        ]
    if engine.parking is not None:
        metrics += [
            counter(
                "sessions_parked_total", "Sessions that gave up their slots, standing still.", engine.parking.parked
            ),
            counter("sessions_unparked_total", "Parked sessions that got a slot again.", engine.parking.returned),
            gauge("sessions_parked", "Sessions without a slot.", len(engine.parking)),
            gauge("parked_bytes", "Host memory that parked sessions take.", engine.parking.held_bytes),
        ]
    if game is not None:
        by_rows = {str(rows): float(game.forwards_of[rows]) for rows in range(1, door.lobby.capacity + 1)}
        metrics += [
            counter("forwards_total", "Forwards of the model.", game.forwards),
            counter("rows_total", "Rows in all forwards.", game.rows),
            counter("forwards_mixed_total", "Forwards over different chunks and different steps.", game.mixed),
            counters("forwards_by_rows_total", "Forwards by their number of rows.", "rows", by_rows),
            counter("chunks_total", "Chunks finished.", game.chunks),
            counter("frames_total", "Frames generated.", game.frames),
            counter("late_chunks_total", "Chunks after their deadline.", game.late_chunks),
            counter("late_seconds_total", "By how much in all.", game.late_s),
        ]
    return metrics


def _file(file: Asset, known_etag: str | None) -> Response:
    if known_etag == file.etag:
        response = _response(HTTPStatus.NOT_MODIFIED, file.content_type, b"", "no-cache")
        del response.headers["Content-Length"]
    else:
        response = _response(HTTPStatus.OK, file.content_type, file.body, "no-cache")
    response.headers["ETag"] = file.etag
    return response


def _json(value: object, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return _response(status, "application/json", json.dumps(value).encode(), NO_STORE)


def _text(status: HTTPStatus, text: str) -> Response:
    return _response(status, "text/plain; charset=utf-8", text.encode(), NO_STORE)


def _response(status: HTTPStatus, content_type: str, body: bytes, cache: str) -> Response:
    headers = Headers(SECURITY)
    headers["Date"] = formatdate(usegmt=True)
    headers["Connection"] = "close"
    headers["Content-Type"] = content_type
    headers["Content-Length"] = str(len(body))
    headers["Cache-Control"] = cache
    return Response(status.value, status.phrase, headers, body)
