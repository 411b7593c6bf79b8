"""The report in a real browser: its view answers to pointer and clicks, and no part of the page is blank."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from analysis.compare import write_report
from tests.fakeresults import serve, write

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium here: the report was not looked at in a browser")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
ACT = """
function texts(selector) { return Array.prototype.map.call(document.querySelectorAll(selector), e => e.textContent); }
function curves() {
  return Array.prototype.map.call(document.querySelectorAll('.chart'),
    c => Array.prototype.map.call(c.querySelectorAll('.curve'), e => e.getAttribute('data-policy')));
}
function point(chart, x, y) {
  var box = chart.querySelector('svg').getBoundingClientRect();
  chart.dispatchEvent(new MouseEvent('mousemove',
    {clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true}));
}
var told = {errors: [], ready: document.getElementById('explore').getAttribute('data-ready'), before: curves()};
var charts = document.querySelectorAll('.chart'), chips = document.querySelectorAll('.chips button');
told.chips = texts('.chips button'); told.choices = texts('.choices button');
point(charts[0], 0.5, 0.4);
told.tip = charts[0].querySelector('.tip').hidden ? null : charts[0].querySelector('.tip').textContent;
if (charts[1]) { point(charts[1], 0.9, 0.5); told.loadTip = charts[1].querySelector('.tip').textContent; }
chips[0].click();
told.without = curves(); told.pressed = chips[0].getAttribute('aria-pressed');
point(charts[0], 0.5, 0.4);
told.tipWithout = charts[0].querySelector('.tip').textContent;
chips[0].click();
told.after = curves();
told.axes = Array.prototype.map.call(document.querySelectorAll('.choices button'), function (b) {
  b.click();
  return charts[0].querySelector('.label').textContent;
});
told.wide = document.documentElement.scrollWidth > window.innerWidth;
var out = document.createElement('pre'); out.id = 'told'; out.textContent = JSON.stringify(told);
document.body.appendChild(out);
"""


def chromium(tmp_path: Path, *arguments: str) -> str:
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run([CHROMIUM, *FLAGS, profile, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def acted_on(page: Path, tmp_path: Path) -> dict[str, Any]:
    """What `ACT` found on the page."""
    script = "<script>window.onerror = e => { document.title = e; };</script>"
    text = page.read_text().replace("<body>", f"<body>{script}", 1)
    acting = tmp_path / "acting.html"
    acting.write_text(text.replace("</body>", f"<script>{ACT}</script></body>"))
    dom = chromium(tmp_path, "--window-size=1400,1000", "--dump-dom", f"file://{acting}")
    found = re.search(r'<pre id="told">(.*?)</pre>', dom, re.S)
    assert found, re.findall(r"<title>.*?</title>", dom)
    told: dict[str, Any] = json.loads(html.unescape(found[1]))
    return told


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two policies, two rates, two replications each."""
    top = tmp_path_factory.mktemp("results")
    for policy in ("static", "vllm"):
        for rate in (2.0, 10.0):
            for seed in range(2):
                made = serve(requests=60, policy=policy, rate_per_s=rate, seed=seed)
                write(top / f"{policy}-{rate:g}" / f"rep-{seed}", made, policy=policy, rate_per_s=rate)
    return write_report([top], top / "report.html")[0]


def test_the_view_answers_to_pointer_and_clicks(page: Path, tmp_path: Path) -> None:
    told = acted_on(page, tmp_path)
    assert told["ready"] == "yes" and told["chips"] == ["static", "vllm"]
    assert told["before"] == told["after"] == [["static", "vllm"]] * 2
    assert told["without"] == [["vllm"]] * 2 and told["pressed"] == "false"
    assert re.match(r"p\d+, and share up to [\d.,]+ m?s", told["tip"])
    assert re.search(r"static[\d.,]+ m?s", told["tip"]) and re.search(r"vllm[\d.,]+ m?s[\d.]+ %", told["tip"])
    assert "static" not in told["tipWithout"] and "vllm" in told["tipWithout"]
    assert told["loadTip"].startswith("10 requests/s") and " to " in told["loadTip"]  # with its interval
    for wanted in ("TTFT", "ITL", "tokens/s of a request", "output tokens/s", "10 requests/s", "goodput"):
        assert wanted in told["choices"]
    assert len({axis.split(" (")[0] for axis in told["axes"]}) == 6
    assert not told["wide"]


def test_one_run_and_none_that_finished(tmp_path: Path) -> None:
    write(tmp_path / "one" / "vllm", serve(requests=30))
    told = acted_on(write_report([tmp_path / "one"], tmp_path / "one.html")[0], tmp_path)
    assert told["before"] == [["vllm"]] and told["without"] == [[]] and told["tip"]
    write(tmp_path / "none" / "vllm", serve(requests=30, reject_all=True))
    told = acted_on(write_report([tmp_path / "none"], tmp_path / "none.html")[0], tmp_path)
    assert told["ready"] == "yes" and told["before"] == [[]] and told["tip"] is None


def test_no_part_of_the_page_is_blank(page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    chromium(tmp_path, "--window-size=1400,6000", f"--screenshot={picture}", f"file://{page}")
    pixels = imread(picture)[..., :3]
    assert pixels.shape == (6000, 1400, 3)
    header, rest = pixels[:150], pixels[150:5400]
    assert header.mean() < 0.35  # dark, with light words
    for at in range(0, len(rest), 750):
        assert rest[at : at + 750].std() > 0.05, f"blank at {at + 150}"
    blue = np.array([0x00, 0x72, 0xB2]) / 255  # the first policy's colour, also of its curve in the view
    assert (np.abs(pixels - blue).max(axis=2) < 0.02).sum() > 3000


def test_thirteen_policies_fit_a_small_screen(tmp_path: Path) -> None:
    """With all columns that there can be, those of an SLO and of preemptions among them, intervals below the values."""
    for seats in range(1, 14):
        for seed in range(2):
            made = serve(requests=30, max_num_seqs=8 + seats, kv_blocks=170, seed=seed)
            label = f"vllm-watermark{seats}"
            folder = write(tmp_path / "cmp" / label / f"rep-{seed}", made, policy=label)
            summary = json.loads((folder / "summary.json").read_text())
            more = {"replication": seed, "preemptions": 40 + seed, "verdict": "above capacity"}
            (folder / "summary.json").write_text(json.dumps(summary | more))
    write_report([tmp_path / "cmp"], tmp_path / "r.html")
    ask = "var e = document.querySelector('#results .scroll'); document.title = e.scrollWidth + ' in ' + e.clientWidth;"
    text = (tmp_path / "r.html").read_text().replace("</body>", f"<script>{ask}</script></body>")
    (tmp_path / "asking.html").write_text(text)
    dom = chromium(tmp_path, "--window-size=1280,1000", "--dump-dom", f"file://{tmp_path / 'asking.html'}")
    found = re.search(r"<title>(\d+) in (\d+)</title>", dom)
    assert found and ">preempted<" in dom and int(found[1]) <= int(found[2]), found
