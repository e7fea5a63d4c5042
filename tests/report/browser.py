"""Opens pages in headless Chromium, and looks for what is broken in them."""

import json
import os
import queue
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

# Without the flags for its background services Chromium looks for hosts of its makers at every start.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
PATIENCE = 120  # seconds without a word from any page
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')

# Runs in a copy of the page, after it has loaded, and tells the page around it what it found.
PROBE = """
<script>
const all = selector => [...document.querySelectorAll(selector)];
const name = element => element.outerHTML.slice(0, 120);
const scrolls = element => element.closest('.scroll') !== null;
window.addEventListener('load', () => setTimeout(() => {
  const width = document.documentElement.clientWidth;
  parent.postMessage(JSON.stringify({
    page: location.pathname.split('/').pop(),
    width,
    scrollWidth: document.documentElement.scrollWidth,
    images: all('img').length,
    blank: all('img').filter(image => !image.complete || image.naturalWidth === 0).map(name),
    unseen: all('img').filter(image => image.getBoundingClientRect().width === 0).map(name),
    wordless: all('img').filter(image => (image.getAttribute('alt') || '').trim() === '').map(name),
    over: all('body *').filter(element => !scrolls(element) || element.classList.contains('scroll'))
      .filter(element => element.getBoundingClientRect().right > width + 0.5).map(name),
    cut: all('body *').filter(element => !element.classList.contains('scroll'))
      .filter(element => element.scrollWidth > element.clientWidth + 1)
      .filter(element => getComputedStyle(element).overflowX !== 'visible')
      .map(name),
    widestName: Math.max(0, ...all('tbody th').map(heading => heading.getBoundingClientRect().width)),
    highestHead: Math.max(0, ...all('thead').map(head => head.getBoundingClientRect().height)),
    headings: all('h1, h2, h3, h4, h5, h6').map(heading => Number(heading.tagName[1])),
    unlabelled: all('table').filter(table => !table.caption || !table.querySelector('thead th[scope=col]')
      || !table.querySelector('tbody th[scope=row]')).map(name),
    dangling: all('[aria-labelledby]').filter(element =>
      !document.getElementById(element.getAttribute('aria-labelledby'))).map(name),
    doubled: all('[id]').map(element => element.id).filter((id, place, ids) => ids.indexOf(id) !== place),
    requested: performance.getEntriesByType('resource').map(entry => entry.name.slice(0, 60))
      .filter(address => !address.startsWith('data:')),
    faint: all('body *').filter(element => [...element.childNodes].some(node => node.nodeType === 3
      && node.textContent.trim() !== '')).map(element => [contrast(element), name(element)])
      .filter(([ratio]) => ratio < 4.5),
    background: getComputedStyle(document.body).backgroundColor,
    language: document.documentElement.lang,
  }), '*');
}, 200));
function luminance(color) {
  const parts = color.match(/[0-9.]+/g).slice(0, 3).map(part => part / 255)
    .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
}
function contrast(element) {
  let below = element;
  while (below && /, 0\\)$|transparent/.test(getComputedStyle(below).backgroundColor)) below = below.parentElement;
  const [one, other] = [getComputedStyle(element).color, below ? getComputedStyle(below).backgroundColor
    : 'rgb(255, 255, 255)'].map(luminance);
  return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
}
</script>
"""
FRAME = """<!DOCTYPE html><html><body style="margin:0">{frames}<script>
window.addEventListener('message', event => fetch('{listener}', {{method: 'POST', mode: 'no-cors', body: event.data}}));
</script></body></html>"""


class Listener(HTTPServer):
    """Hears what the pages tell, on this machine alone.

    Chromium's ``--dump-dom`` says when *it* thinks a page is done, by a clock of its own; on a busy machine that is
    before the last of sixty pages has told what it found.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Told)
        self.told: queue.Queue[dict] = queue.Queue()
        self.address = f"http://127.0.0.1:{self.server_port}/"


class Told(BaseHTTPRequestHandler):
    """Takes one report of a page."""

    server: Listener

    def do_POST(self) -> None:
        found = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.server.told.put(found)

    def log_message(self, *_: object) -> None:
        """Keeps the tests quiet."""


@contextmanager
def listening() -> Iterator[Listener]:
    with Listener() as listener:
        thread = threading.Thread(target=listener.serve_forever, daemon=True)
        thread.start()
        try:
            yield listener
        finally:
            listener.shutdown()
            thread.join()


def chromium() -> str:
    """Answers with the browser. A person without one skips the test; in CI that is a failure."""
    found = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if found is None and os.environ.get("HESITANT_BROWSER") == "required":
        pytest.fail("HESITANT_BROWSER=required, and there is no Chromium: apt-get install chromium")
    if found is None:
        pytest.skip("there is no Chromium to open the report in: apt-get install chromium")
    return found


def command(page: Path, *options: str) -> list[str]:
    """Answers with what opens the page with these options, in a profile of its own."""
    return [chromium(), *FLAGS, f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri()]


def run(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Opens the page with these options, until the browser has done what they ask."""
    done = subprocess.run(command(page, *options), capture_output=True, text=True, timeout=120, check=True)
    shutil.rmtree(page.parent / "profile", ignore_errors=True)
    return done


def look_into(page: Path, folder: Path, *, widths: tuple[int, ...], dark: bool = False) -> list[dict]:
    """Answers with what the probe found in a copy of the page, in windows of these widths."""
    (told,) = look_into_all([page], folder, widths=widths, dark=dark)
    return told


def look_into_all(
    pages: Sequence[Path], folder: Path, *, widths: tuple[int, ...], dark: bool = False
) -> list[list[dict]]:
    """Answers with what the probe found in copies of the pages, each in windows of these widths, in one browser."""
    frames = ""
    for place, page in enumerate(pages):
        text = POLICY.sub("", page.read_text(encoding="utf-8"))  # it would keep the probe out, too
        assert "</body>" in text
        (folder / f"probed{place}.html").write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
        for width in widths:
            frames += f'<iframe src="probed{place}.html" width="{width}" height="900" style="border: 0"></iframe>'
    options = ["--window-size=1400,1000", "--remote-debugging-port=0"]  # the port keeps it open until it is ended
    if dark:
        options.append("--blink-settings=preferredColorScheme=0")
    with listening() as listener:
        frame = folder / "frame.html"
        frame.write_text(FRAME.format(frames=frames, listener=listener.address), encoding="utf-8")
        browser = subprocess.Popen(command(frame, *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            reports = [listener.told.get(timeout=PATIENCE) for _ in range(len(pages) * len(widths))]
        except queue.Empty:
            pytest.fail(f"a page has told nothing for {PATIENCE} s: an error stopped the probe, or the browser")
        finally:
            browser.terminate()
            browser.wait(timeout=PATIENCE)
            shutil.rmtree(folder / "profile", ignore_errors=True)
    told = {(one["page"], one["width"]): one for one in reports}
    return [[told[f"probed{place}.html", width] for width in widths] for place in range(len(pages))]


def console(page: Path) -> list[str]:
    """Answers with what the page itself, as it is, writes to the console: errors, refused requests, warnings."""
    done = run(page, "--enable-logging=stderr", "--log-level=0", "--virtual-time-budget=10000", "--dump-dom")
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def printed(page: Path, folder: Path) -> bytes:
    """Answers with the page as a PDF."""
    run(page, f"--print-to-pdf={folder / 'page.pdf'}")
    return (folder / "page.pdf").read_bytes()
