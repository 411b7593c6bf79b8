"""Trace files: layouts, order, what is refused and where (cases B39, B42, B43)."""

from pathlib import Path

import numpy as np
import pytest

from sim.errors import Complaint
from sim.workload import tracefile
from sim.workload.tracefile import Trace

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
PLAIN = "arrival_s,prompt_tokens,output_tokens\n"
SHARED = Path(__file__).parent.parent.parent / "shared" / "traces"


def rows(trace: Trace) -> list[tuple[float, int, int]]:
    columns = (trace.arrival_s, trace.prompt_tokens, trace.output_tokens)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def refused(text: str) -> str:
    with pytest.raises(Complaint) as caught:
        tracefile.parse(text, "t.csv")
    assert "\n" not in caught.value.what
    return caught.value.what


def test_plain_columns_are_used_as_they_stand() -> None:
    trace = tracefile.parse("note,output_tokens,arrival_s,prompt_tokens\na,7,1.5,0\nb,8,1e1,20\n", "t.csv")
    assert rows(trace) == [(1.5, 0, 7), (10.0, 20, 8)]
    assert (trace.dropped, trace.absolute) == (0, False)


def test_azure_dates_keep_their_seven_digits_and_start_at_zero() -> None:
    text = AZURE + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n2023-11-17 00:00:00,1,2"
    trace = tracefile.parse(text, "t.csv")
    assert rows(trace) == [(0.0, 374, 44), (4.314579, 396, 109), (20653.31941, 1, 2)]
    assert trace.absolute


def test_dates_with_time_zones() -> None:
    """As in Azure's trace of 2024; the same instant in other zones is the same time."""
    stamps = ["2024-05-10 00:00:00.009930+00:00", "2024-05-10T02:00:01.009930+02:00", "2024-05-10 00:00:02.00993Z"]
    trace = tracefile.parse(AZURE + "".join(f"{stamp},1,1\n" for stamp in stamps), "t.csv")
    assert trace.arrival_s.tolist() == [0.0, 1.0, 2.0]
    leap = tracefile.parse(AZURE + "2024-02-28 23:59:59,1,1\n2024-03-01 00:00:00,1,1\n", "t.csv")
    assert leap.arrival_s.tolist() == [0.0, 86401.0]


def test_byte_order_mark_crlf_and_quotes_change_nothing(tmp_path: Path) -> None:
    """Case B43: the same records as from the plain file."""
    plain = AZURE + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    quoted = '"TIMESTAMP","ContextTokens", GeneratedTokens\r\n' + plain.split("\n", 1)[1].replace("\n", "\r\n")
    expected = rows(tracefile.parse(plain, "t.csv"))
    for i, raw in enumerate(
        (plain.encode(), b"\xef\xbb\xbf" + quoted.encode(), b"\xef\xbb\xbf" + plain.rstrip("\n").encode())
    ):
        file = tmp_path / f"{i}.csv"
        file.write_bytes(raw)
        assert rows(tracefile.read(file, file.name)) == expected


def test_order_is_by_time_and_ties_by_row() -> None:
    """Case B42: stamps 5, 3, 9; the first becomes 0, the gaps are 2 and 4."""
    trace = tracefile.parse(AZURE + "5,1,1\n3,2,1\n9,3,1\n5,4,1\n", "t.csv")
    assert rows(trace) == [(0.0, 2, 1), (2.0, 1, 1), (2.0, 4, 1), (6.0, 3, 1)]


def test_rows_without_output_are_dropped_and_counted() -> None:
    """Case B39: of BurstGPT's rows, failed requests have no response tokens."""
    header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    values = [(5, 472, 18), (45, 1087, 0), (118, 417, 276), (130, 9, 0), (140, 8, 3), (141, 7, 2)]
    trace = tracefile.parse(header + "".join(f"{t},ChatGPT,{p},{o},{p + o},API log\n" for t, p, o in values), "t.csv")
    assert rows(trace) == [(0.0, 472, 18), (113.0, 417, 276), (135.0, 8, 3), (136.0, 7, 2)]
    assert trace.dropped == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv:1: is empty; a trace has a header with arrival_s, prompt_tokens, output_tokens"),
        ("\n1,2,3\n", "t.csv:1: is empty"),
        (
            "a,b,c\n1,2,3\n",
            "t.csv:1: arrival_s: column missing; accepted: arrival_s,prompt_tokens,output_tokens or TIMESTAMP,",
        ),
        (
            "arrival,prompt_tokens,output_tokens\n",
            "t.csv:1: arrival_s: column missing; did you mean arrival?; accepted: ",
        ),
        ("TIMESTAMP,ContextTokens\n", "t.csv:1: GeneratedTokens: column missing"),
        ("arrival_s,arrival_s,prompt_tokens,output_tokens\n", "t.csv:1: arrival_s: stands 2 times in the header"),
        (PLAIN, "t.csv:1: has a header, but no requests"),
        (PLAIN + "1,2,0\n", "t.csv:1: none of its 1 requests has output tokens"),
        (PLAIN + "1,2,3\n-1,2,3\n", "t.csv:3: arrival_s: must be seconds from 0 to 1e+12, got '-1'"),
        (PLAIN + "nan,2,3\n", "t.csv:2: arrival_s: must be a finite number, got 'nan'"),
        (PLAIN + "1,2,3\n\n inf,2,3\n", "t.csv:4: arrival_s: must be a finite number, got 'inf'"),
        (PLAIN + ",2,3\n", "t.csv:2: arrival_s: is missing"),
        (PLAIN + "1,,3\n", "t.csv:2: prompt_tokens: is missing"),
        (PLAIN + "1,2.5,3\n", "t.csv:2: prompt_tokens: must be a whole number of tokens >= 0, got '2.5'"),
        (PLAIN + "1,-2,3\n", "t.csv:2: prompt_tokens: must be a whole number of tokens >= 0, got '-2'"),
        (PLAIN + "1,2,many\n", "t.csv:2: output_tokens: must be a number, got 'many'"),
        (PLAIN + "1,2,inf\n", "t.csv:2: output_tokens: must be a finite number"),
        (PLAIN + "1,2,1_0\n", "t.csv:2: output_tokens: must be a finite number, got '1_0'"),
        (PLAIN + "1,2,99999999\n", "t.csv:2: output_tokens: must be at most 10000000 tokens"),
        (PLAIN + "1,2,²\n", "t.csv:2: output_tokens: must be a number, got '²'"),
        (PLAIN + "1,2\n", "t.csv:2: row: has 2 fields, the header has 3"),
        (PLAIN + "1,2,3,4\n", "t.csv:2: row: has 4 fields, the header has 3"),
        (PLAIN + '"1\n2",2,3\n', "t.csv:3: arrival_s: must be a number"),
        (AZURE + "2023-11-16 18:15:46,1,1\n7,1,1\n", "t.csv:3: TIMESTAMP: must be a date such as"),
        (AZURE + "2023-13-16 18:15:46,1,1\n", "t.csv:2: TIMESTAMP: must be a date such as"),
        (AZURE + "2023-11-16 25:15:46,1,1\n", "t.csv:2: TIMESTAMP: must be a date such as"),
        (AZURE + "2023-02-29 18:15:46,1,1\n", "t.csv:2: TIMESTAMP: must be a date such as"),
        (AZURE + "2023-11-16 18:15:61,1,1\n", "t.csv:2: TIMESTAMP: must be a date such as"),
        (AZURE + "2023-11-16 18:15:46.5+1x,1,1\n", "t.csv:2: TIMESTAMP: must be a date such as"),
        (AZURE + "2023-11-16 18:15:46.,1,1\n2023-11-16 18:15:46.0000000000,1,1\n", "t.csv:3: TIMESTAMP: must be"),
        (AZURE + "2023-11-16,1,1\n", "t.csv:2: TIMESTAMP: must be a date such as"),
        (AZURE + "soon,1,1\n", "t.csv:2: TIMESTAMP: must be a number, got 'soon'"),
        (AZURE + "2023-11-16 18:15:46,1,1\n,1,1\n", "t.csv:3: TIMESTAMP: is missing"),
    ],
)
def test_what_is_wrong_is_refused_with_line_and_column(text: str, message: str) -> None:
    assert refused(text).startswith(message)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "b.csv"
    binary.write_bytes(b"arrival_s,prompt_tokens,output_tokens\n1,2,\xff\n")
    for path, what in (
        (tmp_path / "none.csv", "no such file: none.csv"),
        (binary, "b.csv:2: is not UTF-8"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(Complaint) as caught:
            tracefile.read(path, path.name)
        assert what in caught.value.what


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text(PLAIN + "1,2,3\n")
    first = tracefile.read(file, "t.csv")
    assert tracefile.read(file, "t.csv") is first
    file.write_text(PLAIN + "1,2,3\n4,5,6\n")
    assert len(tracefile.read(file, "t.csv").arrival_s) == 2


def test_the_azure_conversation_trace() -> None:
    file = SHARED / "azure" / "AzureLLMInferenceTrace_conv.csv"
    if not file.exists():
        pytest.skip("needs ../shared/traces, which is not part of the repository")
    trace = tracefile.read(file, file.name)
    assert len(trace.arrival_s) + trace.dropped == 19_366
    assert trace.arrival_s[0] == 0 and (np.diff(trace.arrival_s) >= 0).all()
    assert trace.arrival_s[1] == 4.314579
