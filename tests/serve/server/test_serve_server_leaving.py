"""A front that ends without having stopped its engine: the engine's process ends with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LEAVING = """
import asyncio, sys, time
from longcat.serve.server import EngineProcess

def factory():
    time.sleep(100)

async def main():
    process = EngineProcess(factory)
    asyncio.get_running_loop().call_later(1.0, lambda: leave(process))
    await process.start()

def leave(process):
    print(process.pid, flush=True)
    raise SystemExit(3)

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_a_front_that_leaves_without_stopping_it_takes_the_process_along(tmp_path: Path) -> None:
    script = tmp_path / "leaving.py"
    script.write_text(LEAVING)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 3, done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
