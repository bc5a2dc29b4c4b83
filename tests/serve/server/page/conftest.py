"""A browser without a screen, and the application on a port for it to look at."""

import asyncio
import base64
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Browser:
    """Chromium without a screen, spoken to over a pipe in its DevTools protocol."""

    def __init__(self, folder: str) -> None:
        assert CHROMIUM is not None
        there, self._write = os.pipe()
        self._read, back = os.pipe()
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--disable-background-networking", "--no-first-run", "--hide-scrollbars",
                     f"--user-data-dir={folder}", "--remote-debugging-pipe",
                     "--window-size=1100,760"]  # fmt: skip
        script = f'exec "$0" "$@" 3<&{there} 4>&{back}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, CHROMIUM, *arguments, "about:blank"],
            pass_fds=(there, back),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(there)
        os.close(back)
        self._buffer, self._number, self._session = b"", 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]

    def call(self, method: str, **params: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                got = os.read(self._read, 65536)
                assert got, "the browser closed its pipe"
                self._buffer += got
            frame, _, self._buffer = self._buffer.partition(b"\0")
            answer = json.loads(frame)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def js(self, code: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, code: str, seconds: float = 60) -> None:
        """Wait until it is true; what is not there yet is not true."""
        end = time.monotonic() + seconds
        while not self.js(f"(() => {{ try {{ return {code}; }} catch {{ return false; }} }})()"):
            shown = "document.body.innerText"
            assert time.monotonic() < end, f"never came true: {code}; {self.js(shown)}"
            time.sleep(0.05)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until("document.getElementById('state').dataset.up === 'yes'")

    def ask(self, text: str) -> None:
        self.js(f"$('text').value = {json.dumps(text)}; $('form').requestSubmit(); 0")

    def key(self, name: str, code: int, text: str = "") -> None:
        about = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)


class Running:
    """The application on a port of loopback, in a thread."""

    def __init__(self, served: Any, **config: Any) -> None:
        import uvicorn

        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/"
        self.engine: Any = None
        ready = threading.Event()

        async def run() -> None:
            async with served(**config) as server:
                self.engine = server.engine
                app = server.client._transport.app
                options = uvicorn.Config(app, log_level="error", lifespan="off")
                self._uvicorn = uvicorn.Server(options)
                ready.set()
                await self._uvicorn.serve(sockets=[self.socket])

        self._thread = threading.Thread(target=asyncio.run, args=(run(),))
        self._thread.start()
        assert ready.wait(30)

    def stop(self) -> None:
        self._uvicorn.should_exit = True
        self._uvicorn.force_exit = True
        self._thread.join()
        self.socket.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here (apt-get install chromium)")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(folder)
        yield browser
        browser.close()


@pytest.fixture
def run(served_app: Any) -> Iterator[Callable[..., Running]]:
    """run(**config): the application on a port, with an engine of its own; stopped at the end."""
    started: list[Running] = []

    def start(**config: Any) -> Running:
        started.append(Running(served_app, **config))
        return started[-1]

    yield start
    for running in started:
        running.stop()
