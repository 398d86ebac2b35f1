"""Pages in headless Chromium: a script acts on a page and says what it saw. Nothing but the standard library, and Chromium where it is."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))), None)
_NOTE_ERRORS = """<script>
window.errors = [];
console.error = (...parts) => errors.push(parts.join(" "));
addEventListener("error", (event) => errors.push(event.message));
document.addEventListener("securitypolicyviolation", (event) => errors.push(`${event.violatedDirective}: ${event.blockedURI}`));
addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
</script>"""
_ACT = """<script>
const $ = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const pause = (seconds) => new Promise((then) => setTimeout(then, 1000 * seconds));
const choose = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event("change")); };
const key = (id, name) => $(id).dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
addEventListener("load", async () => {
  let seen;
  try { seen = await (async () => { %s })(); } catch (error) { errors.push(String(error)); }
  document.body.append(Object.assign(document.createElement("pre"), { id: "seen", textContent: JSON.stringify({ seen, errors }) }));
});
</script>"""


def act(page: Path, script: str, *options: str, seconds: float = 5.0) -> Any:
    """What a script returned that ran on a page after it was loaded.

    Args:
        script: body of an async function; `$`, `all`, `pause`, `choose` and `key` are at hand.
        options: further ones of Chromium, e.g. "--window-size=390,800".
        seconds: time the page has, as its clock counts it.

    Raises:
        AssertionError: the page or the script caused an error.
    """
    assert CHROMIUM
    text = page.read_text(encoding="utf-8").replace("<head>", f"<head>{_NOTE_ERRORS}", 1)
    copy = page.with_name("acted-on.html")
    copy.write_text(text.replace("</body>", f"{_ACT % script}</body>"), encoding="utf-8")
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--virtual-time-budget={1000 * seconds:.0f}", "--dump-dom", *options]
    done = subprocess.run([CHROMIUM, *arguments, copy.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    answer = json.loads(html.unescape(found[1]))
    assert answer["errors"] == []
    return answer.get("seen")
