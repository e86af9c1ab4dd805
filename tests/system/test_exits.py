"""The short form of `make exits`: processes of a millisecond, one at a time and eight at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.bench import exits

if TYPE_CHECKING:
    from tests.host import Host

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

NUMBER = 200


def test_no_exit_of_a_brief_process_is_lost_or_wrong(host: Host) -> None:
    assert exits.run(host, NUMBER) == 0
