"""A real Chromium without a window, driven by its DevTools protocol.

Source: https://chromedevtools.github.io/devtools-protocol/ (Page, Runtime, Emulation, Network).
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import tempfile
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.sync.client import connect

from helpers.services import program
from helpers.waiting import SCALE, eventually

#: Seconds in which the browser answers a command.
SECONDS = 20.0 * SCALE


class Browser:
    """One Chromium with one page; for a ``with`` block. Skips, or fails in CI, if there is none."""

    def __init__(self) -> None:
        self._profile = Path(tempfile.mkdtemp(prefix="chromium-"))
        self._process = subprocess.Popen(
            [
                program("chromium"),
                "--headless=new",
                "--remote-debugging-port=0",
                f"--user-data-dir={self._profile}",
                # It opens nothing but our own page, and containers have no room for its sandbox.
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--no-first-run",
                "--no-proxy-server",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._numbers = itertools.count(1)
        self._open = contextlib.ExitStack()
        #: Errors of scripts, and what the page was kept from loading.
        self.complaints: list[str] = []
        address = eventually(self._address, SECONDS, "Chromium is there")
        self._socket = self._open.enter_context(connect(address, max_size=None, proxy=None))
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._open.close()
        self._process.terminate()
        self._process.wait(SECONDS)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and give its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": arguments}))
        while True:
            message = json.loads(self._socket.recv(timeout=SECONDS))
            self._note(message)
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                result: dict[str, Any] = message["result"]
                return result

    def open(self, url: str) -> None:
        """Load a page."""
        self.call("Page.navigate", url=url)
        self.until("document.readyState == 'complete'")

    def run(self, script: str) -> Any:
        """Give the value of an expression, or what a promise comes to."""
        result = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until an expression gives something true."""
        eventually(lambda: self.run(f"Boolean({script})"), SECONDS, script)

    def text(self, selector: str) -> str:
        """Give the text that is shown of an element; empty if there is none."""
        shown = self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
        return str(shown)

    def shows(self, selector: str, text: str) -> None:
        """Wait until an element shows `text`."""

        def shown() -> bool:
            found = self.text(selector)
            assert text in found, f"{text!r} is not in {found!r}"
            return True

        eventually(shown, SECONDS, f"{selector} shows {text!r}")

    def type(self, selector: str, text: str) -> None:
        """Put text into a field, in place of what stands there."""
        self.run(
            f"document.querySelector({json.dumps(selector)}).focus(),"
            f"document.querySelector({json.dumps(selector)}).select?.()"
        )
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press a key."""
        text = {"text": "\r"} if key == "Enter" else {}
        code = {"Enter": 13, "Tab": 9, "Escape": 27}[key]
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text
            )

    def size(self, width: int, height: int = 900, *, phone: bool = False) -> None:
        """Give the window a size."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )

    def scheme(self, name: str) -> None:
        """Prefer ``dark`` or ``light``."""
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": name}],
        )

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Write what is shown into a PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def _address(self) -> str:
        assert self._process.poll() is None, "Chromium has ended"
        file = self._profile / "DevToolsActivePort"
        if not file.exists() or not file.read_text().strip():
            return ""
        port = int(file.read_text().split()[0])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = [each for each in json.load(answer) if each["type"] == "page"]
        return str(pages[0]["webSocketDebuggerUrl"]) if pages else ""

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"].get("exception", parameters)))
        elif message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.complaints.append(parameters["entry"]["text"])
