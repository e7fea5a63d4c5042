"""Opens pages in headless Chromium, and looks for what is broken in them."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from html import unescape
from pathlib import Path

import pytest

# Without the flags for its background services Chromium looks for hosts of its makers at every start.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
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
FRAME = """<!DOCTYPE html><html><body style="margin:0">{frames}<pre id="found"></pre><script>
const found = [];
window.addEventListener('message', event => {{
  found.push(JSON.parse(event.data));
  document.getElementById('found').textContent = JSON.stringify(found);
}});
</script></body></html>"""


def chromium() -> str:
    """Answers with the browser. A person without one skips the test; in CI that is a failure."""
    found = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if found is None and os.environ.get("HESITANT_BROWSER") == "required":
        pytest.fail("HESITANT_BROWSER=required, and there is no Chromium: apt-get install chromium")
    if found is None:
        pytest.skip("there is no Chromium to open the report in: apt-get install chromium")
    return found


def run(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Opens the page with these options, in a profile of its own."""
    profile = page.parent / "profile"
    command = [chromium(), *FLAGS, f"--user-data-dir={profile}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    shutil.rmtree(profile, ignore_errors=True)
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
    (folder / "frame.html").write_text(FRAME.format(frames=frames), encoding="utf-8")
    options = ["--virtual-time-budget=20000", "--window-size=1400,1000", "--dump-dom"]
    if dark:
        options.append("--blink-settings=preferredColorScheme=0")
    dom = run(folder / "frame.html", *options).stdout
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, dom[:2000]
    assert found[1], "the page has told nothing: an error stopped the probe"
    told = {(one["page"], one["width"]): one for one in json.loads(unescape(found[1]))}
    assert len(told) == len(pages) * len(widths)
    return [[told[f"probed{place}.html", width] for width in widths] for place in range(len(pages))]


def console(page: Path) -> list[str]:
    """Answers with what the page itself, as it is, writes to the console: errors, refused requests, warnings."""
    done = run(page, "--enable-logging=stderr", "--log-level=0", "--virtual-time-budget=10000", "--dump-dom")
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def printed(page: Path, folder: Path) -> bytes:
    """Answers with the page as a PDF."""
    run(page, f"--print-to-pdf={folder / 'page.pdf'}")
    return (folder / "page.pdf").read_bytes()
