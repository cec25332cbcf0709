"""A server for the tests of a module, with a network that finds what is red and what is green, and a video of both."""

from __future__ import annotations

import pytest
from app_client import LIMITS, red_green_server, video_bytes


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> bytes:
    return video_bytes(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with red_green_server(tmp_path_factory.mktemp("model"), limits=LIMITS) as client:
        yield client
