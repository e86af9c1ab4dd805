"""The pure half of tests/compare: what counts as a difference, and which entry explains it."""

from __future__ import annotations

import pytest

from sdshim.pb import task_v2_pb2 as pb
from tests.compare import differences
from tests.compare.differences import Difference, Known, compare, judge, load
from tests.compare.tape import Tape

OK = {"code": "OK", "pid": "c", "status": "RUNNING"}
FOUND = Difference("cells.running", "Get c", "status", "RUNNING", "PAUSED")


def _diff(stock: dict[str, dict[str, str]], ours: dict[str, dict[str, str]]) -> list[str]:
    return [f"{d.step}/{d.field}: {d.stock} | {d.ours}" for d in compare("s", stock, ours)]


def test_equal_tapes_have_no_difference() -> None:
    assert _diff({"Get c": OK}, {"Get c": dict(OK)}) == []


def test_each_field_is_a_difference_of_its_own() -> None:
    ours = {**OK, "status": "PAUSED", "pid": "0"}
    assert _diff({"Get c": OK}, {"Get c": ours}) == [
        "Get c/pid: c | 0",
        "Get c/status: RUNNING | PAUSED",
    ]


def test_an_error_in_the_place_of_an_answer_is_one_difference() -> None:
    error = {"code": "NOT_FOUND", "text": "no"}
    assert _diff({"Get c": OK}, {"Get c": error}) == [
        "Get c/answer: code=OK pid=c status=RUNNING | code=NOT_FOUND text=no"
    ]


def test_a_step_that_only_one_has_is_a_difference() -> None:
    event = {"pid": "c"}
    assert _diff({}, {"event exit of c": event}) == ["event exit of c/: (nothing) | pid=c"]
    assert _diff({"event exit of c": event}, {}) == ["event exit of c/: pid=c | (nothing)"]


@pytest.mark.parametrize(
    ("entry", "explained"),
    [
        (Known("r"), True),
        (Known("r", scenario="cells.*", step="Get *", field="status"), True),
        (Known("r", stock="RUNNING", ours="PAUSED"), True),
        (Known("r", ours="PAUSE"), False),
        (Known("r", step="Get"), False),
        (Known("r", scenario="lives.*"), False),
        (Known("r", hosts=("*/v2", "forky/*")), False),
        (Known("r", hosts=("self/*",)), True),
    ],
)
def test_an_entry_explains_what_all_of_its_patterns_fit(entry: Known, *, explained: bool) -> None:
    verdict = judge([FOUND], (entry,), "self/v1")
    assert verdict.unexplained == (not explained)


@pytest.mark.parametrize(
    ("stock", "explained"),
    [("create exit", True), ("", True), ("exit create", False), ("create oom", False)],
)
def test_what_stock_may_lose_is_no_other_order(stock: str, *, explained: bool) -> None:
    found = Difference("cells.running", "events c", "order", stock, "create start exit delete")
    verdict = judge([found], (Known("r", fewer=True),), "forky/v2")
    assert verdict.unexplained == (not explained)


def test_an_entry_that_does_not_occur_any_more_is_reported_where_it_should_have() -> None:
    entries = (
        Known("used", field="status"),
        Known("behind", scenario="gone.*"),
        Known("elsewhere", scenario="gone.*", hosts=("forky/*",)),
        Known("now and then", scenario="gone.*", sometimes=True),
    )
    verdict = judge([FOUND, FOUND], entries, "self/v2")
    assert [entry.reason for entry in verdict.unseen] == ["behind"]
    assert verdict.unexplained == 0
    assert len(verdict.found) == 2


@pytest.mark.parametrize(
    "text", ["[[difference]]\nstep='x'", "[[difference]]\nreason=' '", "[[difference]]\nwhy='x'"]
)
def test_an_entry_without_a_reason_or_with_an_unknown_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"differences\.toml"):
        load(text)


def test_the_file_of_known_differences_can_be_read() -> None:
    assert all(len(entry.reason) > 5 for entry in load(differences.FILE.read_text()))


def test_what_differs_from_run_to_run_gets_a_word_for_what_it_means() -> None:
    tape = Tape({"space-1": "NS"})
    tape.pids[42] = "c"
    message = pb.StateResponse(id="x", bundle="/run/space-1/x\n", pid=42)
    message.exited_at.seconds = -62135596800
    flat = tape.flat(message)
    assert flat["bundle"] == "/run/NS/x"
    assert flat["pid"] == "c"
    assert flat["exited_at"] == "zero"
    assert tape.pid(43) == "another"
    assert tape.time(pb.StateResponse().exited_at) == "epoch"


def test_the_same_step_again_is_numbered() -> None:
    tape = Tape({})
    for _ in range(3):
        tape.put("Get c", OK)
    assert list(tape.answers) == ["Get c", "Get c #2", "Get c #3"]
