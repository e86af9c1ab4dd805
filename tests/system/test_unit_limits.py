"""What limits and counts a container is a property of its unit: shown by systemctl, changed by it
at once, kept in step by Update."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from sdshim.pb import options_pb2
from sdshim.pb.wellknown import RESOURCES_URL, pack
from tests.system.limits import MIB, bound
from tests.system.taskclient import Rig, spec_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.host import Host

pytestmark = [pytest.mark.system, pytest.mark.timeout(60)]

BOX, UNIT = "box", "sdshim-default-box.service"


def _show(host: Host, *names: str) -> dict[str, str]:
    found = host.run(["systemctl", "show", UNIT, *(f"--property={n}" for n in names)]).stdout
    lines = [line.split("=", 1) for line in found.splitlines()]
    return {name: " ".join(v for n, v in lines if n == name) for name, _ in lines}


def _limited(resources: dict[str, Any], *command: str) -> dict[str, Any]:
    spec = spec_of(*(command or ("sleep", "1000")))
    spec["linux"]["resources"] = resources
    return spec


def _disk(host: Host) -> str:
    """MAJOR:MINOR of a whole disk of the machine's."""
    found = host.run(
        ["sh", "-c", "cat /sys/block/[vsn][dv]*/dev /sys/block/loop0/dev"], check=False
    )
    return found.stdout.split()[0]


@pytest.mark.controllers
def test_every_limit_of_the_spec_is_a_property(rig: Rig, host: Host) -> None:
    disk = _disk(host)
    major, minor = map(int, disk.split(":"))
    rates = {
        f"throttle{name}Device": [{"major": major, "minor": minor, "rate": number}]
        for number, name in enumerate(("ReadBps", "WriteBps", "ReadIOPS", "WriteIOPS"), 1_000_001)
    }
    resources = {
        "memory": {"limit": 64 * MIB, "reservation": 16 * MIB},
        "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 50},
        "blockIO": rates,
    }
    rig.running(BOX, spec=_limited(resources))
    device = f"/dev/block/{disk}"
    wanted = {"MemoryMax": str(64 * MIB), "TasksMax": "50", "CPUQuotaPerSecUSec": "500ms"}
    if host.cgroup == "v1":
        wanted |= {
            "CPUShares": "512",
            "BlockIOReadBandwidth": f"{device} 1000001",
            "BlockIOWriteBandwidth": f"{device} 1000002",
        }
    else:
        wanted |= {
            "MemoryLow": str(16 * MIB),
            "CPUWeight": "20",
            "AllowedCPUs": "0",
            "AllowedMemoryNodes": "0",
            "IOReadBandwidthMax": f"{device} 1000001",
            "IOWriteBandwidthMax": f"{device} 1000002",
            "IOReadIOPSMax": f"{device} 1000003",
            "IOWriteIOPSMax": f"{device} 1000004",
        }
    assert _show(host, *wanted) == wanted


def test_what_the_options_ask_for_shows_on_every_host(rig: Rig, host: Host) -> None:
    device = "/dev/block/7:0"
    given = {"IODeviceWeight": f"{device} 50", "IOReadBandwidthMax": f"{device} 5M"}
    given |= {"IOWriteIOPSMax": f"{device} 7K", "AllowedCPUs": "0", "CPUWeight": "idle"}
    bundle = rig.bundle(BOX, "sleep", "1000")
    options = pack(options_pb2.Options(unit_properties=given))
    rig.call("Create", id=BOX, bundle=bundle.path, options=options)
    rig.call("Start", id=BOX)
    assert _show(host, *given) == given | {
        "IOReadBandwidthMax": f"{device} 5000000",
        "IOWriteIOPSMax": f"{device} 7000",
    }


@pytest.mark.controllers
def test_set_property_acts_at_once_and_update_keeps_unit_and_container_in_step(
    rig: Rig, host: Host
) -> None:
    script = "read x; for n in 1 2 3 4 5 6 7 8; do sleep 1000 & done; echo all"
    bundle = rig.bundle(BOX, spec=_limited({"pids": {"limit": 40}}, "sh", "-c", script))
    paths = {name: bundle.fifo(name) for name in ("stdin", "stdout", "stderr")}
    rig.call("Create", id=BOX, bundle=bundle.path, **paths)
    rig.call("Start", id=BOX)
    host.run(["systemctl", "set-property", "--runtime", UNIT, "TasksMax=5", "MemoryMax=64M"])
    assert bound(host, BOX, "pids", "unit") == 5
    assert bound(host, BOX, "pids") == 40
    (bundle.outside / "stdin").write_text("go\n")
    assert rig.call("Wait", id=BOX).exit_status != 0
    assert b"fork" in bundle.read("stderr")
    rig.call("Delete", id=BOX)

    rig.running("next", spec=_limited({"pids": {"limit": 40}}))
    unit = "sdshim-default-next.service"
    host.run(["systemctl", "set-property", "--runtime", unit, "TasksMax=5", "MemoryMax=64M"])
    wanted = json.dumps({"pids": {"limit": 30}, "memory": {"limit": 32 * MIB}}).encode()
    rig.call("Update", id="next", resources=AnyMessage(type_url=RESOURCES_URL, value=wanted))
    for of in ("unit", "container"):
        assert bound(host, "next", "pids", of) == 30
        assert bound(host, "next", "memory", of) == 32 * MIB


# --- accounting


BUSY = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 1000 & sleep 1000 & echo up; wait"


def test_the_units_figures_are_the_containers(rig: Rig, host: Host) -> None:
    bundle = rig.bundle(BOX, "sh", "-c", BUSY)
    rig.call("Create", id=BOX, bundle=bundle.path, stdout=bundle.fifo("stdout"))
    rig.call("Start", id=BOX)
    bundle.read_line("stdout")
    group = f"sdshim.slice/sdshim-default.slice/{UNIT}/container"
    shown = _show(host, "CPUUsageNSec", "MemoryCurrent", "TasksCurrent")
    if host.cgroup == "v1":
        used = int(host.path(f"/sys/fs/cgroup/cpuacct/{group}/cpuacct.usage").read_text())
        memory = f"memory/{group}/memory.usage_in_bytes"
    else:
        stat = host.path(f"/sys/fs/cgroup/{group}/cpu.stat").read_text().split()
        used = int(stat[1]) * 1000
        memory = f"{group}/memory.current"
    assert int(shown["CPUUsageNSec"]) >= used * 9 // 10 > 0  # the runtime's own counts too
    status = host.run(["systemctl", "status", "--no-pager", UNIT]).stdout
    assert "CPU: " in status
    if not host.controllers:
        return
    assert shown["TasksCurrent"] == "3"
    assert int(shown["MemoryCurrent"]) >= int(host.path(f"/sys/fs/cgroup/{memory}").read_text()) / 2
    for word in ("Tasks: 3", "Memory: "):
        assert word in status


SENDS = """
import socket, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.sendto(bytes(1000), ("127.0.0.1", 9))
print("up", flush=True)
time.sleep(1000)
"""


def test_ip_traffic_is_counted_when_asked_for(rig: Rig, host: Host) -> None:
    spec = spec_of("/usr/bin/python3", "-I", "-c", SENDS)
    for place in ("/usr", "/lib", "/lib64"):
        source = f"/usr{place}" if place.startswith("/lib") else place
        mount = {"destination": place, "type": "bind", "source": source}
        spec["mounts"].append({**mount, "options": ["rbind", "ro"]})
    spaces = spec["linux"]["namespaces"]
    spec["linux"]["namespaces"] = [space for space in spaces if space["type"] != "network"]
    options = pack(options_pb2.Options(unit_properties={"IPAccounting": "yes"}))
    bundle = rig.bundle(BOX, spec=spec)
    stdout = bundle.fifo("stdout")
    rig.call("Create", id=BOX, bundle=bundle.path, stdout=stdout, options=options)
    rig.call("Start", id=BOX)
    bundle.read_line("stdout")
    assert int(_show(host, "IPEgressBytes")["IPEgressBytes"]) > 1000
    assert "IP: " in host.run(["systemctl", "status", "--no-pager", UNIT]).stdout


# --- device rules


RULES = [
    {"allow": False, "access": "rwm"},
    {"allow": True, "type": "c", "access": "m"},
    {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
    {"allow": True, "type": "c", "major": 1, "minor": 9, "access": "r"},
]


@pytest.mark.cgroup("v2")
def test_device_rules_show_when_asked_for_and_let_the_container_work(
    rig: Rig, host: Host, configured: Callable[[str], None]
) -> None:
    configured("device_rules = true\n")
    script = "echo x >/dev/null && echo well; cat; exit 3"
    bundle = rig.bundle(BOX, spec=_limited({"devices": RULES}, "sh", "-c", script))
    streams = {name: bundle.fifo(name) for name in ("stdin", "stdout")}
    rig.call("Create", id=BOX, bundle=bundle.path, **streams)
    rig.call("Start", id=BOX)
    assert bundle.read_line("stdout") == b"well\n"
    shown = _show(host, "DevicePolicy", "DeviceAllow")
    assert shown["DevicePolicy"] == "closed"
    for word in ("char-* m", "/dev/char/1:3 rwm", "/dev/char/1:9 r"):
        assert word in shown["DeviceAllow"]
    (bundle.outside / "stdin").write_text("")
    rig.call("CloseIO", id=BOX, stdin=True)
    assert rig.call("Wait", id=BOX).exit_status == 3
    assert rig.call("Delete", id=BOX).exit_status == 3
    assert not rig.unit_exists(BOX)
