"""What a container reads and writes is counted at its unit when that is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sdshim.pb import options_pb2
from sdshim.pb.wellknown import pack
from tests.system.limits import MIB
from tests.system.rootfs import WORK, sh, spec_with
from tests.system.taskclient import ROOTFS

if TYPE_CHECKING:
    from tests.host import Host
    from tests.system.taskclient import Rig

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(120),
    pytest.mark.usefixtures("mount_folder"),
]

UNIT = "sdshim-default-io.service"
SCRIPT = """
dd if=/dev/zero of=/data bs=1M count=6 oflag=direct
dd if=/data of=/dev/null bs=1M count=3 iflag=direct
echo done; sleep 1000
"""


@pytest.mark.cgroup("v2")  # systemd has no figures of I/O on v1
@pytest.mark.controllers
def test_bytes_read_and_written_are_counted_when_asked_for(rig: Rig, host: Host) -> None:
    sh(host, f"truncate -s 32M image; mkfs.ext4 -q -d {ROOTFS} image")
    bundle = rig.bundle("io", spec=spec_with("sh", "-c", SCRIPT))
    rig.call(
        "Create",
        id="io",
        bundle=bundle.path,
        rootfs=[{"type": "ext4", "source": f"{WORK}/image", "options": ["loop"]}],
        stdout=bundle.fifo("stdout"),
        options=pack(options_pb2.Options(unit_properties={"IOAccounting": "yes"})),
    )
    rig.call("Start", id="io")
    assert bundle.read_line("stdout") == b"done\n"

    def figure(name: str) -> int:
        return int(host.run(["systemctl", "show", "-P", name, UNIT]).stdout)

    # The image's own blocks, of the program and the file system, come on top.
    assert 6 * MIB <= figure("IOWriteBytes") < 8 * MIB
    assert 3 * MIB <= figure("IOReadBytes") < 8 * MIB
    assert figure("IOWriteOperations") >= 6
    assert "IO: " in host.run(["systemctl", "status", "--no-pager", UNIT]).stdout
