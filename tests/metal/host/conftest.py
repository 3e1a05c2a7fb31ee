"""The host's builds, once for all tests of this folder."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from host import build as host_build


@pytest.fixture(scope="session")
def host(rig_cache):
    if reason := host_build.missing():
        pytest.skip(reason)
    return host_build.HostBuild(rig_cache)
