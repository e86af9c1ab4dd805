"""A Create that containerd has given up while no daemon was there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sdshim.core.errors import Canceled
from sdshim.pb import runc_pb2
from sdshim.pb.wellknown import pack
from tests.system.conftest import rig
from tests.system.taskclient import dead_daemon, eventually, no_traceback

if TYPE_CHECKING:
    from tests.host import Host
    from tests.system.taskclient import Rig

__all__ = ["rig"]

pytestmark = [pytest.mark.system, pytest.mark.fault, pytest.mark.timeout(60)]

SLOW = "/tmp/taskclient/slow"
SCRIPT = f"""#!/bin/sh
case " $* " in *" create "*)
    touch {SLOW}.reached
    exec sleep 1000
esac
exec runc "$@"
"""


def test_it_is_not_made_again(rig: Rig, host: Host) -> None:
    path = host.path(SLOW)
    path.write_text(SCRIPT)
    path.chmod(0o755)
    bundle = rig.bundle("box", "true")
    options = pack(runc_pb2.Options(binary_name=SLOW))
    made = rig.begin("Create", id="box", bundle=bundle.path, options=options)
    eventually(path.with_name("slow.reached").exists, "the runtime runs")
    path.with_name("slow.reached").unlink()
    cursor = host.run(["journalctl", "-n0", "--show-cursor"]).stdout.rpartition("cursor: ")[2]
    with no_traceback(host):
        with dead_daemon(host):
            rig.launcher(bundle, "delete")
        with pytest.raises(Canceled, match="given up"):
            made.result(15)
    assert not path.with_name("slow.reached").exists()
    said = host.run(["journalctl", "-u", "sdshim", "-o", "cat", f"--after-cursor={cursor.strip()}"])
    assert "cannot undo" not in said.stdout
