"""What a container inherits when its spec names no limits."""

from __future__ import annotations

import os
import resource

from sdshim.host.process import INFINITY, limits_of


def _open_files() -> tuple[int, int]:
    """(soft, hard) of this process; Python's word for unlimited is -1."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft & INFINITY, hard & INFINITY


def test_limits_are_those_of_the_process() -> None:
    soft, hard = _open_files()
    found = dict(limits_of(os.getpid()))
    assert (found["LimitNOFILESoft"], found["LimitNOFILE"]) == (soft, hard)
    assert set(found) == {
        f"Limit{name}{half}" for name in ("NOFILE", "NPROC", "CORE") for half in ("", "Soft")
    }


def test_the_soft_limit_that_a_child_has_seen_wins_up_to_the_hard_one() -> None:
    me, (_, hard) = os.getpid(), _open_files()
    assert dict(limits_of(me, "64"))["LimitNOFILESoft"] == 64
    assert dict(limits_of(me, "unlimited"))["LimitNOFILESoft"] == hard
    assert dict(limits_of(me, str(INFINITY)))["LimitNOFILESoft"] == hard


def test_nobody_has_no_limits() -> None:
    assert limits_of(2**22 + 1, "64") == ()
