"""A web server on this machine, a cache of its own, no waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from frcnn_plugin.checkpoint.catalog import download
from frcnn_plugin.checkpoint.catalog import known_files as catalog
from frcnn_plugin.checkpoint.catalog.known_files import KnownFile

from .catalog.http_server import Server, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "BACK_OFF", 0.0)
    monkeypatch.setattr(download, "TIMEOUT", 5.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(Server()) as it:
        yield it


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of cached files, empty."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "frcnn_plugin"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def set_catalog(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that replaces the catalog by the given entries."""

    def replace(*known: KnownFile) -> None:
        monkeypatch.setattr(catalog, "CATALOG", known)

    return replace
