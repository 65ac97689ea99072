"""The page's files, read once into memory: what is not in the table cannot be asked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".ico": "image/x-icon",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
}


@dataclass(frozen=True, slots=True)
class Asset:
    content_type: str
    body: bytes
    etag: str


def asset(content_type: str, body: bytes) -> Asset:
    return Asset(content_type, body, f'"{hashlib.sha256(body).hexdigest()[:20]}"')


def load_assets(package: str = "web_client") -> dict[str, Asset]:
    """URL path -> file, for every file of the package with a known suffix; `/` is `/index.html`."""
    assets: dict[str, Asset] = {}
    for entry in resources.files(package).iterdir():
        suffix = "." + entry.name.rpartition(".")[2]
        if entry.is_file() and suffix in CONTENT_TYPES:
            assets[f"/{entry.name}"] = asset(CONTENT_TYPES[suffix], entry.read_bytes())
    if "/index.html" in assets:
        assets["/"] = assets["/index.html"]
    return assets
