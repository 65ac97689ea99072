"""Protects the page: every file of the client is served with the type a browser insists on, and nothing else is."""

from __future__ import annotations

from importlib import resources

from gameserver.static import load_assets


def test_the_page_and_its_modules_are_there_and_python_is_not() -> None:
    assets = load_assets()
    assert assets["/"] is assets["/index.html"]
    assert assets["/"].content_type.startswith("text/html")
    modules = [path for path in assets if path.endswith(".js")]
    assert modules and all(assets[path].content_type.startswith("text/javascript") for path in modules)
    assert not [path for path in assets if path.endswith((".py", ".pyc"))]
    assert assets["/index.html"].body == (resources.files("web_client") / "index.html").read_bytes()
    assert len({asset.etag for asset in assets.values()}) == len(assets) - 1
