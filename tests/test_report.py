"""The report is one file that needs nothing else, says who is better, and is written whole or not at all."""

import base64
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from analysis import report
from analysis.__main__ import main
from analysis.catalog import KEY
from analysis.compare import COLUMNS, comparison, table, write_report
from analysis.load import ResultError, find, read
from analysis.variants import variants
from sim.cli import main as sim_main
from tests.fakeresults import serve, write

NOTE = "roofline without overheads, optimistic"


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two policies at two rates, under `ideal`."""
    top = tmp_path_factory.mktemp("results") / "cmp"
    for policy in ("static", "vllm"):
        for rate in (2.0, 10.0):
            made = serve(requests=60, policy=policy, rate_per_s=rate)
            write(top / f"{policy}-{rate:g}", made, policy=policy, rate_per_s=rate, note=NOTE)
    return top


@pytest.fixture(scope="module")
def html(compared: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("report") / "r.html"
    write_report([compared], out)
    return out.read_text()


def test_nothing_is_loaded_from_elsewhere(html: str) -> None:
    assert "http:" not in html and "https:" not in html
    assert not re.search(r"<(iframe|object|embed)\b|<script[^>]*\bsrc|@import|url\(|fetch\(|XMLHttp|import\(", html)
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", html)
    assert sources and all(source.startswith("data:") for source in sources)


def test_it_names_what_was_run_and_measured(html: str) -> None:
    for word in ("chatbot", "llama-3.1-8b", "h100_sxm", "Poisson, 2, 10 requests/s", "servesim 0.1.0"):
        assert word in html, word
    assert "<dt>Seed</dt><dd>1</dd>" in html
    for policy in ("static", "vllm"):
        assert len(re.findall(rf"</svg>{policy}</th>", html)) == 2  # one row a rate
    assert html.count('<tr class="rate">') == 2
    for metric in KEY:
        assert f'title="{metric.name}"' in html or metric.name == "preemptions"  # there were none
    for unit in ("ms", "req/s", "tok/s", "%"):
        assert f"<small>{unit}</small>" in html
    for name in ("p95_e2el_ms", "mean_kv_usage", "generated_throughput"):
        assert f">{name}</th>" in html
    assert all(f"<figcaption>{start}" in html for start in ("How long", "Each point", "Mean over", "Averages"))


def test_pictures_are_inside_and_beside(compared: Path, tmp_path: Path) -> None:
    written = write_report([compared], tmp_path / "deep" / "r.html")
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == sorted(path.name for path in written)
    html = written[0].read_text()
    inside = [base64.b64decode(text) for text in re.findall(r"data:image/png;base64,([^\"]+)", html)]
    assert inside == [path.read_bytes() for path in written if path.suffix == ".png"] and len(inside) == 10
    assert written[1].name == "r-cdf_ttft.png"


def test_the_best_of_each_rate_is_marked(html: str) -> None:
    rows = re.findall(r"</svg>(\w+)</th>.*?</tr>", html, re.S)
    assert rows == ["static", "vllm"] * 2
    bodies = re.findall(r'<tr class="rate">(.*?)</tbody>', html, re.S)
    for body in bodies:
        _, vllm = re.split(r"</svg>static</th>", body)[1].split("</svg>vllm</th>")
        first = re.findall(r'<td class="([^"]*)"><span>([^<]*)', vllm)[0]
        assert "best" in first[0] and float(first[1].replace(",", "")) > 0


def test_optimism_is_said_at_the_top_and_below_the_table(html: str) -> None:
    assert html.count(NOTE) == 2
    assert html.index(NOTE) < html.index("<table>") < html.rindex(NOTE)


def test_folders_below_the_report_are_named_as_seen_from_it(tmp_path: Path) -> None:
    write(tmp_path / "cmp" / "vllm", serve(requests=20))
    write_report([tmp_path / "cmp"], tmp_path / "cmp" / "report.html")
    assert "From the result folder vllm." in (tmp_path / "cmp" / "report.html").read_text()


def test_a_name_cannot_break_the_page(tmp_path: Path) -> None:
    write(tmp_path / "run", serve(requests=20), policy="<b>&", name="</title><script>")
    out = tmp_path / "r.html"
    write_report([tmp_path / "run"], out)
    assert "<script>" not in out.read_text() and "&lt;b&gt;&amp;" in out.read_text()


def test_nothing_finished_is_a_report_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "run", serve(requests=20, reject_all=True))
    assert main(["report", str(tmp_path / "run")]) == 0
    html = (tmp_path / "run" / "report.html").read_text()
    assert "vllm: 20 rejected of 20 requests" in html and "means no data" in html
    assert not re.search(r"\b(nan|None)\b", html)
    assert "report.html and 8 plots" in capsys.readouterr().out


@pytest.mark.parametrize("broken", ["summary.json", "spans.parquet"])
def test_a_bad_folder_is_one_line_and_nothing_is_written(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    folder = write(tmp_path / "cmp" / "run", serve(requests=20))
    (folder / broken).unlink()
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", str(compared), str(tmp_path / "cmp"), "--out", str(tmp_path / "out" / "r.html")]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err == f"{folder}: {broken} is missing\n"
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'nowhere'}: no such folder\n"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_table_that_breaks_late_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "run", serve(requests=20))
    (folder / "steps.parquet").write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", str(folder)]) == 2
    assert capsys.readouterr().err.startswith(f"{folder}: steps.parquet cannot be read")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_fails_leaves_nothing(
    compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left, whole = 3, Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device", str(path))
        return whole(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(["report", str(compared), "--out", str(tmp_path / "r.html")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_report_of_equal_results_is_equal_in_another_process(compared: Path, html: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "analysis", "report", str(compared), "--out", str(tmp_path / "r.html")]
    root = Path(report.__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "r.html").read_text() == html


def test_several_folders_need_no_common_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [str(write(tmp_path / name / "vllm", serve(requests=20))) for name in ("a", "b")]
    monkeypatch.chdir(tmp_path)
    assert main(["report", *folders]) == 0
    assert "vllm (a/vllm)" in (tmp_path / "report.html").read_text()


REAL = """
name: real
model: llama-3.1-8b
gpu: h100_sxm
policies: {static: {name: static, batch_size: 8}, vllm: vllm}
engine: {max_model_len: 4096}
workload:
  num_requests: 50
  arrivals: {name: poisson, rate_per_s: 8}
  prompt_tokens: 200
  output_tokens: 50
cost: {name: roofline, calibration: ideal}
"""


def test_a_real_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "real.yaml").write_text(REAL)
    assert sim_main(["compare", str(tmp_path / "real.yaml"), "--rates", "5,20", "--out", str(tmp_path / "out")]) == 0
    assert "20 requests/s" in capsys.readouterr().out
    html = (tmp_path / "out" / "report.html").read_text()
    assert "From the result folders static-5, static-20, vllm-5, vllm-20." in html
    assert NOTE in html and html.count("data:image/png") == 10
    assert main(["report", str(tmp_path / "out"), "--out", str(tmp_path / "out" / "again.html")]) == 0
    assert (tmp_path / "out" / "again.html").read_text() == html  # in whatever order the folders are found
    numbers = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert (numbers.loc[numbers["metric"] == "finished", "value"] == 50).sum() == 4


def test_classes_have_a_table_and_a_picture_of_their_own(tmp_path: Path) -> None:
    text = REAL.replace("  prompt_tokens: 200\n  output_tokens: 50\n", "")
    text = text.replace(
        "cost:",
        """  classes:
    chat: {weight: 3, prompt_tokens: 100, output_tokens: 20, slo: {ttft_ms: 300}}
    essay: {prompt_tokens: 800, output_tokens: 200, slo: {e2e_ms: 9000}}
cost:""",
    )
    (tmp_path / "two.yaml").write_text(text)
    assert sim_main(["compare", str(tmp_path / "two.yaml"), "--jobs", "1", "--out", str(tmp_path / "out")]) == 0
    html = (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "out" / "report-by_class.png").stat().st_size > 20_000
    assert "<h2>Request classes</h2>" in html and "within the SLO of its class" in html
    assert "<dd>chat: TTFT ≤ 300 ms; essay: E2E ≤ 9,000 ms</dd>" in html
    rows = re.findall(r'<tr><th class="name" scope="row">(chat|essay)</th><td>(\d+)</td>', html)
    assert [name for name, _ in rows] == ["chat", "essay"] * 2
    assert sum(int(count) for _, count in rows) == 2 * 50
    variant = variants(find([tmp_path / "out"]))[1]
    summary = variant.first.summary["classes"]
    for label in ("chat", "essay"):
        values, _ = variant.distribution("ttft", label)
        assert values.mean() == pytest.approx(summary[label]["mean_ttft_ms"])
    assert not any("class" in name for name in comparison([tmp_path / "out"])["metric"])


# --- the same numbers as a table ----------------------------------------------------------------------------------


def test_the_comparison_is_long_and_named_as_in_summary_json(compared: Path, tmp_path: Path) -> None:
    found = comparison([compared])
    assert tuple(found.columns) == COLUMNS
    chosen = found[(found["policy"] == "vllm") & (found["rate_per_s"] == 10.0)].set_index("metric")["value"]
    summary = read(compared / "vllm-10").summary
    for name in ("p99_ttft_ms", "request_goodput", "completed", "mean_kv_usage"):
        assert chosen[name] == summary[name]
    assert not {"policy", "note", "streamed", "warmup_s", "rate_per_s"} & set(chosen.index)
    assert (found["replications"] == 1).all() and found[["ci_low", "ci_high"]].isna().all(axis=None)
    found.to_csv(tmp_path / "comparison.csv", index=False)
    lines = (tmp_path / "comparison.csv").read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS) and "static,2.0,p99_tpot_ms,,,,1" in lines  # static has no TPOT
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "comparison.csv"), found, check_dtype=False)


def test_replications_get_an_interval(tmp_path: Path) -> None:
    for k in range(3):
        write(tmp_path / "vllm" / f"rep-{k}", serve(requests=40, seed=k))
    row = comparison([tmp_path]).set_index("metric").loc["mean_ttft_ms"]
    values = [read(tmp_path / "vllm" / f"rep-{k}").summary["mean_ttft_ms"] for k in range(3)]
    assert row["replications"] == 3 and row["value"] == pytest.approx(sum(values) / 3)
    assert row["ci_low"] < min(values) and row["ci_high"] > max(values)


def printed(folder: Path, width: int = 80) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(table([folder]))
    return captured.get()


def test_the_terminal_shows_rates_below_each_other(compared: Path) -> None:
    text = printed(compared)
    assert "2 requests/s" in text and "10 requests/s" in text and "* best" in text and NOTE in text
    rows = [line.split() for line in text.splitlines() if line.startswith(("static", "vllm"))]
    assert len(rows) == 4
    slow, fast = rows[2:]
    assert slow[1] == fast[1] == "60" and fast[2].endswith("*") and "–" in slow


def test_the_terminal_shows_policies_beside_each_other(tmp_path: Path) -> None:
    for policy in ("static", "vllm"):
        write(tmp_path / policy, serve(requests=60, policy=policy), policy=policy, rate_per_s=None)
    write(tmp_path / "none", serve(requests=30, reject_all=True), policy="none", rate_per_s=None)
    text = printed(tmp_path)
    assert text.splitlines()[0].split() == ["none", "static", "vllm"]
    assert re.search(r"Finished requests +0/30 +60 +60", text)
    assert re.search(r"TTFT p99 +m?s +– +\S+ +\S+\*", text)
    assert max(map(len, text.splitlines())) <= 80


def test_the_terminal_shows_many_policies_below_each_other(tmp_path: Path) -> None:
    for seats in range(1, 13):
        write(tmp_path / f"{seats}", serve(requests=30, max_num_seqs=seats), policy=f"vllm-{seats}")
    text = printed(tmp_path)
    assert all(re.search(rf"^vllm-{seats} ", text, re.M) for seats in range(1, 13))


def test_no_result_is_an_error_for_all(tmp_path: Path) -> None:
    for ask in (comparison, table):
        with pytest.raises(ResultError):
            ask([tmp_path])
