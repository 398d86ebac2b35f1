"""The report while a sweep runs: served to this machine, and made again as records change."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import CHROMIUM, act
from fake_results import metrics_at, record_of, write_run, write_sweep

from analysis.report import serving, write_report
from sae_core.errors import ConfigError

pytestmark = pytest.mark.slow


def sweep_of(directory: Path, *levels: float) -> Path:
    return write_sweep(directory, [record_of("topk", k, metrics_at(k, 1 / k, 0.1)) for k in levels])


def ask(port: int, version: str = "", host: str = "", path: str = "/") -> tuple[int, str, str]:
    """Status, version and content of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"If-None-Match": version, **({"Host": host} if host else {})})
    answer = connection.getresponse()
    return answer.status, answer.getheader("ETag", ""), answer.read().decode()


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Look every now and then."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds
        threading.Event().wait(0.05)


def test_it_follows_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, told = sweep_of(tmp_path / "demo", 8, 16), []
    monkeypatch.setattr(serving, "SECONDS", 0.05)
    monkeypatch.setattr("analysis.report.content.draw_plots", lambda *_, **__: [])
    interrupt = threading.Event()
    sleep = time.sleep

    def sleep_or_end(seconds: float) -> None:
        sleep(min(seconds, 0.05))
        if interrupt.is_set():
            raise KeyboardInterrupt

    monkeypatch.setattr("analysis.report.serving.time.sleep", sleep_or_end)
    ended: list[Path] = []
    thread = threading.Thread(target=lambda: ended.append(serving.serve_report([sweep], tmp_path / "out", 0, say=told.append)), daemon=True)
    thread.start()
    wait_until(lambda: bool(told))
    port = int(told[0].split("127.0.0.1:")[1].split("/")[0])
    status, version, text = ask(port)
    assert (status, "2</b> of 2 runs finished" in text) == (200, True)
    assert f"data-follow='{version}'" in text
    assert ask(port, version)[0] == 304
    assert ask(port, path="/etc/passwd")[0] == 404
    assert ask(port, host="elsewhere.example:80")[0] == 403
    write_run(sweep, record_of("topk", 32, metrics_at(32, 1 / 32, 0.1)))
    wait_until(lambda: ask(port, version)[0] == 200)
    _, version, text = ask(port)
    assert "3</b> of 3 runs finished" in text
    (sweep / "sweep.json").write_text("{")  # damaged: what can be read is shown
    wait_until(lambda: ask(port, version)[0] == 200)
    interrupt.set()
    thread.join(10)
    assert ended == [tmp_path / "out" / "report.html"]
    assert "data-follow" not in ended[0].read_text().partition("<head>")[0]


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"`--port` must be one that is free, but got {port}: .*Choose another one, or 0"):
            serving.serve_report([sweep_of(tmp_path / "demo", 8)], tmp_path / "out", port)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_page_shows_new_records_and_keeps_what_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.report.content.draw_plots", lambda *_, **__: [])
    first = write_report(sweep_of(tmp_path / "demo", 8, 16), tmp_path / "first")
    second = write_report(sweep_of(tmp_path / "demo", 8, 16, 32), tmp_path / "second")
    first.write_text(first.read_text().replace("<html ", "<html data-follow='1' ", 1))
    seen = act(
        first,
        f"""
        const pages = [{json.dumps(second.read_text()).replace("</", "<" + chr(92) + "/")}];
        window.fetch = async () => {{
          const text = pages.pop();
          return new Response(text ?? null, {{ status: text ? 200 : 304, headers: {{ ETag: "2" }} }});
        }};
        choose("y", "kl");
        key("plot", "ArrowRight"); key("plot", "Enter");
        const before = $("plot").getAttribute("aria-label");
        await pause(5);
        return [before, $("plot").getAttribute("aria-label"), $("top").innerText.includes("3 of 3 runs"), all("#compare thead th").length];
        """,
        seconds=10,
    )
    kind = "KL divergence from the clean model (nats per token) against L0 (active latents per token)"
    assert seen == [f"{kind}, 2 settings", f"{kind}, 3 settings", True, 1]
