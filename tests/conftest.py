"""What every test gets: one thread, no network, cache folders of its own, and the tiny model on request."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("no_clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no_clock")
DEAD_END = "http://127.0.0.1:9"  # the discard port: what goes to it as a proxy fails at once


def pytest_configure(config: pytest.Config) -> None:
    """Environment of this process and, through it, of the scripts that tests start. Nothing is read from the user's
    caches, and nothing that tests remember stays."""
    home = Path(tempfile.mkdtemp(prefix="easel_tests_"))
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    os.environ["EASEL_CACHE_DIR"] = str(home / "easel")
    os.environ["HF_HOME"] = str(home / "hub")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        os.environ[name] = os.environ[name.upper()] = DEAD_END
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "localhost,127.0.0.1,::1"


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """A connection to anything but this machine is an error that names the address."""
    real_connect, real_connect_ex, real_getaddrinfo = (
        socket.socket.connect,
        socket.socket.connect_ex,
        socket.getaddrinfo,
    )

    def connect(self: socket.socket, address: Any) -> None:
        _refuse_remote(self.family, address)
        real_connect(self, address)

    def connect_ex(self: socket.socket, address: Any) -> int:
        _refuse_remote(self.family, address)
        return real_connect_ex(self, address)

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_remote(socket.AF_INET, (host,))
        return real_getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect)
        patch.setattr(socket.socket, "connect_ex", connect_ex)
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """A script that a test runs in this process sets up the log, on a stream that is closed after the test.

    Fixtures of a module run scripts before the first of its tests, so before each test too the log is as if nothing had
    set it up.
    """
    _forget_log()
    yield
    _forget_log()


def _forget_log() -> None:
    logger = logging.getLogger("easel")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


def _refuse_remote(family: int, address: Any) -> None:
    if family not in (socket.AF_INET, socket.AF_INET6):
        return  # a socket file
    host = address[0].decode() if isinstance(address[0], bytes) else address[0]
    is_local = host in (None, "", "localhost", socket.gethostname(), "::", "::1", "0.0.0.0") or host.startswith("127.")
    if not is_local:
        raise RuntimeError(f"a test tried to reach {host} over the network; tests work offline")


@pytest.fixture(scope="session")
def tiny_sd3_factory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Call it as `build_tiny_sd3` without a folder: returns the TinySd3, built once per worker and set of arguments.

    The files are shared: tests that change them work on a copy.
    """
    from examples.tiny_sd3.make import build_tiny_sd3

    built: dict[tuple[tuple[str, Any], ...], Any] = {}

    def build(**options: Any) -> Any:
        key = tuple(sorted(options.items()))
        if key not in built:
            built[key] = build_tiny_sd3(tmp_path_factory.mktemp("tiny_sd3"), **options)
        return built[key]

    return build


@pytest.fixture(scope="session")
def tiny_sd3(tiny_sd3_factory: Callable[..., Any]) -> Path:
    """A tiny SD3-medium in one file, its tokenizers beside it."""
    return tiny_sd3_factory().model


@pytest.fixture
def tiny_pictures(tmp_path: Path) -> Path:
    """A folder with the twelve example pictures and captions, the test's own."""
    return Path(shutil.copytree(ROOT / "examples" / "pictures", tmp_path / "pictures"))
