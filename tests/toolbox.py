"""Build tools for tests that compile something."""

import os
import shutil
import subprocess
import sys
from pathlib import Path


def tool(name: str) -> str:
    """The tool beside this Python, else the one on the PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = shutil.which(name, path=path)
    assert found, f"{name} is missing: pip install -r tests/requirements.txt"
    return found


def run(*command: object) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
    return done.stdout
