"""A real Chromium, driven from its command line: what a page becomes, how it looks, and what it loads."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.support.optional import skip

_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
# Nothing that Chromium does for itself, and no name is resolved.
_QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--lang=en",
)  # fmt: skip


class Seen(NamedTuple):
    """A page after its scripts ran: the document, a picture, and the addresses it loaded from the network."""

    document: str
    picture: Path
    addresses: list[str]


@cache
def chromium() -> str:
    """Return the program ($CHROMIUM, or one on the PATH); skip the test without one."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        skip("browser", f"none of {', '.join(_NAMES)} is installed, and $CHROMIUM names none")
    return found


def see(address: str, folder: Path, *, width: int = 1200, dark: bool = False, seconds: float = 2.0) -> Seen:
    """Load a page, let ``seconds`` of its own time pass, and return what is there then."""
    folder.mkdir(parents=True, exist_ok=True)
    log, picture = folder / "net.json", folder / "page.png"
    words = [
        chromium(), *_QUIET, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},1600",
        f"--virtual-time-budget={seconds * 1000:.0f}", f"--log-net-log={log}", f"--screenshot={picture}", "--dump-dom",
        *(["--blink-settings=preferredColorScheme=0"] if dark else []), address,
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and picture.exists(), done.stderr
    return Seen(done.stdout, picture, _addresses(log))


def _addresses(log: Path) -> list[str]:
    """Return the addresses of Chromium's own record of its requests, of http and https only."""
    text = log.read_text("utf-8", "replace")
    found = re.findall(r'"url":"(https?://(?:[^"\\]|\\.)*)"', text)
    return list(dict.fromkeys(json.loads(f'"{address}"') for address in found))


def hosts(seen: Seen) -> set[str]:
    """Return the hosts that a page made the browser ask."""
    return {urlsplit(address).hostname or "" for address in seen.addresses}
