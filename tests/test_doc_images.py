"""The pictures of docs: each is shown, small, and not blank; the script that makes them knows the report's names."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image

from analysis.report import SECTIONS
from tests import doc_images

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "docs" / "images").glob("*.png"))


def test_all_pictures_are_shown() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    shown = {name for page in pages for name in re.findall(r"images/([\w-]+\.png)", page.read_text("utf-8"))}
    assert shown == {path.name for path in FILES}
    assert {f"{name}.png" for name in (*doc_images.PICTURES.values(), "explore")} < shown


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_picture_is_small_and_not_blank(path: Path) -> None:
    assert path.stat().st_size < 150_000
    picture = imread(path)[..., :3]
    assert picture.shape[1] >= 1000
    assert len(np.unique((255 * picture[::4]).astype(int) @ (1, 256, 65536))) > 20  # colours
    rows = picture.std(axis=(1, 2)) > 0.01
    assert rows.mean() > 0.5  # most rows have something in them


def test_the_script_knows_the_plots_of_the_report() -> None:
    assert set(doc_images.PICTURES) <= {name for *_, names in SECTIONS for name in names}
    picture = Image.new("RGB", (2600, 10), "white")
    picture.putpixel((0, 0), (200, 0, 0))
    out = io.BytesIO()
    picture.save(out, "PNG")
    made = Image.open(io.BytesIO(doc_images.small(out.getvalue())))
    assert made.size == (1300, 5)
    assert f"python -m sim {doc_images.COMMAND} " in (ROOT / "docs" / "report.md").read_text("utf-8")
