"""The pictures of docs: `python tests/doc_images.py` simulates, draws, and writes them.

Pictures are those of the report itself, in 128 colours. The interactive view is a screenshot; without Chromium it stays
as it is.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
PICTURES = {
    "cdf_ttft": "cdf-ttft",
    "cdf_itl": "cdf-itl",
    "against_rate": "against-rate",
    "against_throughput": "against-throughput",
    "by_class": "by-class",
    "where_time_went": "where-time-went",
}
"""Plots of the report -> files of docs/images."""
COMMAND = "compare scenarios/chatbot.yaml --policies static,vllm --rates 4,8,12,16,20 --replications 3"
POLICIES = {
    "policies": {"where_time_went": "policies-time"},
    "policies_tight_kv": {"timelines": "policies-tight-kv"},
    "policies_shared_prefixes": {"cdf_tpot": "policies-prefixes"},
}
"""Scenario -> plots of its report -> files, for docs/policies.md."""
MEASURED = "check h100_sxm-torch --data calibrate/measurements/h100_sxm-llama-3.1-70b-tp4 --all"
COLOURS, WIDTH = 128, 1300


def small(picture: bytes) -> bytes:
    """A PNG of at most 128 colours and 1,300 pixels in width."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def explored(report: Path, folder: Path) -> bytes | None:
    """A screenshot of the interactive view; None without Chromium."""
    browser = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
    )
    if not browser:
        return None
    text = report.read_text("utf-8")
    page, shot = folder / "explore.html", folder / "explore.png"
    # All but the view is hidden, so that the picture does not depend on what stands above it.
    others = "body section:not(#explore), body header, body > main > *:not(#explore)"
    hide = f"<style>{others} {{display: none !important}}</style>"
    page.write_text(text.replace("</head>", f"{hide}</head>", 1), "utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,1240"]
    more = [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000", f"--screenshot={shot}"]
    subprocess.run([browser, *flags, *more, page.as_uri()], check=True, capture_output=True)
    return shot.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description="write the pictures of docs/report.md anew")
    parser.add_argument("--requests", type=int, default=1500, help="of each simulation")
    requests = parser.parse_args().requests
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [*COMMAND.split(), "--set", f"workload.num_requests={requests}", "--out", str(folder / "out")]
        subprocess.run([sys.executable, "-m", "sim", *command], cwd=ROOT, check=True)
        for plot, file in PICTURES.items():
            (IMAGES / f"{file}.png").write_bytes(small((folder / "out" / f"report-{plot}.png").read_bytes()))
        for scenario, pictures in POLICIES.items():
            out = str(folder / scenario)
            compare = ["compare", f"scenarios/{scenario}.yaml", "--out", out]
            subprocess.run([sys.executable, "-m", "sim", *compare], cwd=ROOT, check=True)
            for plot, file in pictures.items():
                (IMAGES / f"{file}.png").write_bytes(small(Path(out, f"report-{plot}.png").read_bytes()))
        check = ["-m", "calibrate", *MEASURED.split(), "--out", str(folder / "check")]
        subprocess.run([sys.executable, *check], cwd=ROOT, check=True, capture_output=True)
        (IMAGES / "measured.png").write_bytes(small((folder / "check" / "check.png").read_bytes()))
        if (shot := explored(folder / "out" / "report.html", folder)) is not None:
            (IMAGES / "explore.png").write_bytes(small(shot))


if __name__ == "__main__":
    main()
