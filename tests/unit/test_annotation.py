"""What annotations ask for, beside the options of a task."""

from __future__ import annotations

import pytest

from sdshim.core import annotation
from sdshim.core.errors import InvalidArgument
from sdshim.core.model import RuntimeOptions

IMAGE = "org.opencontainers.image.stopSignal"
SIGNAL, TIMEOUT = "io.sdshim.stop-signal", "io.sdshim.stop-timeout"
NERDCTL = "nerdctl/stop-timeout"


def _properties(notes: dict[str, str], **options: str) -> dict[str, str]:
    found, left_out = annotation.applied(RuntimeOptions(unit_properties=options), notes)
    assert not left_out
    return dict(found.unit_properties)


def test_without_annotations_the_options_stay_as_they_are() -> None:
    options = RuntimeOptions(unit_properties={"CPUWeight": "7"}, notify=True)
    assert annotation.applied(options, {"other": "x"}) == (options, [])


def test_readiness_is_asked_for_by_either() -> None:
    for option, note, wanted in ((False, "true", True), (True, "false", True)):
        notes = {annotation.NOTIFY: note}
        found, _ = annotation.applied(RuntimeOptions(notify=option), notes)
        assert found.notify is wanted


def test_the_options_win_over_ours_and_ours_over_others() -> None:
    notes = {IMAGE: "SIGQUIT", NERDCTL: "30"}
    assert _properties(notes) == {"KillSignal": "SIGQUIT", "TimeoutStopSec": "30"}
    notes |= {SIGNAL: "SIGRTMIN+3", TIMEOUT: "1min 30s"}
    assert _properties(notes) == {"KillSignal": "SIGRTMIN+3", "TimeoutStopSec": "1min 30s"}
    found = _properties(notes, KillSignal="2")
    assert found == {"KillSignal": "2", "TimeoutStopSec": "1min 30s"}


def test_what_others_wrote_and_cannot_be_read_is_left_out_and_named() -> None:
    notes = {IMAGE: "SIGSOON", NERDCTL: "-1", SIGNAL: "INT"}
    found, left_out = annotation.applied(RuntimeOptions(), notes)
    assert dict(found.unit_properties) == {"KillSignal": "INT"}
    assert left_out == [f"{IMAGE}='SIGSOON'", f"{NERDCTL}='-1'"]


def test_every_fault_of_ours_is_named_at_once() -> None:
    notes = {SIGNAL: "SOON", TIMEOUT: "a while", annotation.NOTIFY: "1"}
    with pytest.raises(InvalidArgument) as caught:
        annotation.applied(RuntimeOptions(), notes)
    for word in ("KillSignal='SOON'", "TimeoutStopSec='a while'", "io.sdshim.notify '1'"):
        assert word in str(caught.value)
