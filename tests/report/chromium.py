"""The page in a real browser: headless Chromium, without a network."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

BINARY = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--window-size=1300,900",
    "--virtual-time-budget=10000",  # milliseconds for the page's timers, not waited for
]


def chromium(*options: str) -> str:
    """Runs Chromium with its own profile and returns its output. Skips the test where it is not installed."""
    if BINARY is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    profile = Path(options[-1].removeprefix("file://").partition("#")[0]).with_suffix(".profile")
    command = [BINARY, *OPTIONS, f"--user-data-dir={profile}", *options]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=100)
    shutil.rmtree(profile, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dom(page: Path, address: str = "") -> str:
    """The page's elements after its scripts ran."""
    return chromium("--dump-dom", f"file://{page}{address}")


def run_in(page: Path, script: str, address: str = "") -> Any:
    """What `script`, the body of an async function, returns in the page (as JSON).

    The page's own policy lets no other script run, so this is done in a copy with another policy."""
    text = page.read_text(encoding="utf-8")
    text, changes = re.subn(r"script-src 'sha256-[^']+'", "script-src 'unsafe-inline'", text)
    assert changes == 1
    driver = f"""<script>
    const $ = (selector) => [...document.querySelectorAll(selector)];
    const texts = (selector) => $(selector).map((element) => element.textContent);
    const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
    (async () => {{ {script} }})().catch((error) => ({{error: String(error)}})).then((value) => {{
      const found = document.createElement("pre");
      found.id = "found";
      found.textContent = JSON.stringify(value);
      document.body.append(found);
    }});
    </script></body>"""
    copy = page.with_name(f"driven-{page.name}")
    copy.write_text(text.replace("</body>", driver), encoding="utf-8")
    return json.loads(unescape(re.findall(r'<pre id="found">(.*?)</pre>', dom(copy, address), re.DOTALL)[0]))


def screenshot(page: Path, picture: Path, size: str = "1200,2400") -> Path:
    chromium(f"--screenshot={picture}", f"--window-size={size}", f"file://{page}")
    return picture
