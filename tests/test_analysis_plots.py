"""Pictures that show something: not blank, the right panels, nothing covered, the same bytes for the same data."""

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from analysis.load import find
from analysis.plots import distributions, draw_all, parts, rates, style, timelines
from analysis.variants import Variant, variants
from tests.fakeresults import serve, write

NOTE = "roofline without overheads, optimistic"
CDFS = ["cdf_ttft", "cdf_tpot", "cdf_itl", "cdf_e2el", "cdf_speed", "cdf_output"]
RATES = ["against_rate", "against_throughput"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one, two, grid (2 policies at 4 rates), twelve, rates (1 policy at 12 rates), none (no request finished)."""
    top = tmp_path_factory.mktemp("results")
    write(top / "one" / "vllm", serve(requests=80), note=NOTE)
    for policy in ("static", "vllm"):
        write(top / "two" / policy, serve(requests=80, policy=policy), policy=policy, note=NOTE)
        for rate in (2.0, 4.0, 8.0, 16.0):
            made = serve(requests=60, policy=policy, rate_per_s=rate)
            write(top / "grid" / f"{policy}-{rate:g}", made, policy=policy, rate_per_s=rate, note=NOTE)
    for seats in range(1, 13):
        made = serve(requests=40, rate_per_s=20.0, max_num_seqs=4 * seats)
        write(top / "twelve" / f"vllm-{seats:02}", made, policy=f"vllm-{seats:02}", note=NOTE)
        made = serve(requests=40, rate_per_s=2.0 * seats)
        write(top / "rates" / f"{seats:02}", made, rate_per_s=2.0 * seats, note=NOTE)
    write(top / "none" / "vllm", serve(requests=20, reject_all=True), note=NOTE)
    return top


@pytest.fixture(autouse=True)
def look() -> Iterator[None]:
    with matplotlib.rc_context(style.RC):
        yield


def of(folders: Path, name: str) -> list[Variant]:
    return variants(find([folders / name]))


def cdf(variants: list[Variant], _: str) -> Figure:
    return distributions._draw(variants, "ttft", "Time to first token (TTFT)")


def shown(figure: Figure) -> list[Axes]:
    figure.canvas.draw()
    return [axes for axes in figure.axes if axes.get_visible()]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


@pytest.mark.parametrize("name", ["one", "grid", "none"])
def test_no_picture_is_blank(folders: Path, name: str) -> None:
    plots = draw_all(of(folders, name))
    expected = [*CDFS, *(RATES if name == "grid" else []), "where_time_went", "timelines"]
    assert [plot.name for plot in plots] == expected
    for plot in plots:
        pixels = imread(BytesIO(plot.png))[..., :3]
        assert pixels.std() > 0.03, plot.name
        assert pixels.shape[1] == pytest.approx((style.WIDE if plot.wide else style.NARROW) * 150, abs=2)
        assert plot.caption.endswith(".") and plot.title


@pytest.mark.parametrize(
    "draw, name, panels",
    [
        (cdf, "one", 1),
        (cdf, "two", 1),
        (cdf, "grid", 4),
        (cdf, "twelve", 12),
        (cdf, "rates", 1),
        (cdf, "none", 1),
        (rates._draw, "grid", 6),
        (rates._draw, "rates", 6),
        (rates._draw_throughput, "grid", 3),
        (rates._draw_throughput, "rates", 3),
        (parts._draw, "two", 1),
        (parts._draw, "grid", 4),
        (timelines._draw_lines, "two", 3),
        (timelines._draw_lines, "grid", 9),
        (timelines._draw_lines, "rates", 9),
        (timelines._draw_strips, "twelve", 6),  # with a colour bar each
    ],
)
def test_panels_do_not_touch_title_legend_or_note(
    folders: Path, draw: Callable[..., Figure], name: str, panels: int
) -> None:
    figure = draw(of(folders, name), "A title")
    every = shown(figure)
    assert len(every) == panels
    boxes = [axes.get_tightbbox() for axes in every]
    around = [text.get_window_extent() for text in figure.texts]
    around += [legend.get_window_extent() for legend in figure.legends]
    assert len(around) >= 2
    width, height = figure.canvas.get_width_height()
    for box in around:
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height
        for panel in boxes:
            assert panel is not None and not panel.overlaps(box)
    assert not any(axes.get_legend() for axes in every)
    assert NOTE in texts(figure)


def test_each_policy_keeps_its_colour(folders: Path) -> None:
    grid = of(folders, "grid")
    assert {label: look.color for label, look in style.looks(grid).items()} == {
        "static": style.PALETTE[0],
        "vllm": style.PALETTE[1],
    }
    for draw in (cdf, rates._draw, rates._draw_throughput, timelines._draw_lines):
        colors = {line.get_color() for axes in shown(draw(grid, "t")) for line in axes.get_lines()}
        assert set(style.PALETTE[:2]) <= colors
        assert not set(style.PALETTE[2:]) & colors
    bars = shown(parts._draw(grid, "t"))[0].get_yticklabels()
    assert [(text.get_text(), text.get_color()) for text in bars] == list(
        zip(("static", "vllm"), style.PALETTE, strict=False)
    )


def test_twelve_policies_look_different() -> None:
    seen = style.looks([Variant(f"p{i}", 1.0) for i in range(12)]).values()
    assert len({(look.color, str(look.dash)) for look in seen}) == 12


def test_curves_are_the_data(folders: Path) -> None:
    (variant,) = of(folders, "one")
    line = shown(cdf([variant], ""))[0].get_lines()[0]
    assert line.get_xdata()[-1] == pytest.approx(variant.distribution("ttft")[0].max())
    assert line.get_ydata()[0] == 0.0 and line.get_ydata()[-1] == 1.0
    figure = rates._draw(of(folders, "grid"), "t")
    tokens = shown(figure)[4]
    vllm = tokens.get_lines()[1]
    wanted = [variant.value("output_throughput") for variant in of(folders, "grid") if variant.label == "vllm"]
    assert list(vllm.get_xdata()) == [2.0, 4.0, 8.0, 16.0] and list(vllm.get_ydata()) == wanted


def test_replications_give_bands_and_bars(tmp_path: Path) -> None:
    for rate in (4.0, 8.0):
        for seed in range(3):
            write(
                tmp_path / f"{rate:g}" / f"rep-{seed}", serve(requests=60, seed=seed, rate_per_s=rate), rate_per_s=rate
            )
    both = variants(find([tmp_path]))
    (panel,) = shown(cdf(both, ""))
    (band, _) = panel.collections
    for values, share in band.get_paths()[0].vertices:
        assert values > 0 and 0.0 <= share <= 1.0
    _, low, high = distributions._band(both[0], "ttft", np.sort(both[0].distribution("ttft")[0]))  # type: ignore[misc]
    assert (low <= high).all() and (high - low).max() > 0.01 and high[-1] == low[-1] == 1.0
    assert len(shown(rates._draw(both, "t"))[0].collections) == 2  # median and p99
    assert shown(rates._draw_throughput(both, "t"))[0].containers
    assert any("±" in text for text in texts(parts._draw(both, "t")))
    assert not shown(cdf(both[:1], ""))[0].collections or len(both[0].runs) > 1


def test_rates_of_output_are_over_seconds(tmp_path: Path) -> None:
    (variant,) = variants(find([write(tmp_path / "r", serve(requests=60, rate_per_s=1.0))]))
    values, seconds = variant.distribution("output")
    whole = int(variant.first.summary["duration"])
    assert seconds.sum() == whole and values[0] == 0.0  # some seconds are idle at this rate
    steps = variant.first.steps
    assert (values * seconds).sum() == steps.loc[steps["end_s"] < whole, "emitted"].sum()
    assert values.max() <= variant.first.summary["max_output_tokens_per_s"]
    speed, _ = variant.distribution("speed")
    requests = variant.first.requests
    assert np.sort(speed) == pytest.approx(np.sort(1000 * requests["output_tokens"] / requests["e2el_ms"]))


def test_timelines_are_averages_over_time(folders: Path) -> None:
    (variant,) = of(folders, "one")
    summary = variant.first.summary
    edges = np.linspace(0.0, summary["end_s"], 101)
    kv = timelines._values(variant.first, "kv", edges)
    assert np.nanmean(kv) == pytest.approx(summary["mean_kv_usage"], rel=1e-9)
    batch = timelines._values(variant.first, "batch", edges)
    assert np.nanmean(batch) == pytest.approx(summary["mean_batch_size"] * summary["busy_fraction"], rel=1e-9)
    late = timelines._values(variant.first, "batch", np.array([0.0, summary["end_s"], summary["end_s"] + 5.0]))
    assert np.isnan(late[1]) and not np.isnan(late[0])


def test_a_wide_spread_gets_a_logarithmic_axis(folders: Path) -> None:
    assert shown(cdf(of(folders, "two"), ""))[0].get_xscale() == "log"
    (variant,) = of(folders, "one")
    assert shown(distributions._draw([variant], "tpot", "t"))[0].get_xscale() == "linear"


def test_the_slo_is_drawn_where_it_is_in_sight(folders: Path) -> None:
    figure = cdf(of(folders, "two"), "")
    assert "SLO" in texts(figure)
    two = of(folders, "two")
    two[0].first.scenario["slo"] = {"ttft_ms": 1.0}  # then there is no common limit
    assert "SLO" not in texts(cdf(two, ""))


@pytest.mark.parametrize("draw", [cdf, parts._draw, timelines._draw_lines])
def test_no_data_is_said(folders: Path, draw: Callable[..., Figure]) -> None:
    assert any("no data" in text for text in texts(draw(of(folders, "none"), "t")))


def test_what_is_not_streamed_is_named_in_the_legend(folders: Path) -> None:
    figure = distributions._draw(of(folders, "two"), "itl", "t")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["static (no data)", "vllm"]
    assert "static: no data" in texts(rates._draw(of(folders, "grid"), "t"))


def test_a_note_that_is_not_everybodys_names_whose_it_is(folders: Path) -> None:
    two = of(folders, "two")
    two[1].first.summary["note"] = ""
    assert style.note_of(two) == f"static: {NOTE}"
    two[0].first.summary["note"] = ""
    assert style.note_of(two) == ""


def test_the_same_data_give_the_same_bytes(folders: Path) -> None:
    def drawn(**rc: Any) -> list[bytes]:
        with matplotlib.rc_context(rc):
            return [plot.png for plot in draw_all(of(folders, "one"))]

    assert drawn() == drawn() == drawn(**{"font.size": 20.0})  # whatever else the process has set
