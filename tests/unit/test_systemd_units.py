"""The shipped unit files: what must stay in them, and what must never come in."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "units"
FILES = sorted(path for path in UNITS.rglob("*") if path.is_file())
# Each gives the service a mount namespace of its own (systemd.exec(5)), or is inherited by hooks.
NEVER = re.compile(
    r"^(Private|Protect|ReadOnly|ReadWrite|Inaccessible|NoExec|ExecPaths|Bind|Temporary|Mount|Root"
    r"|DynamicUser|StateDirectory|LogNamespace|Restrict|SystemCall|CapabilityBounding|NoNewPriv"
    r"|OOMScoreAdjust|IPAddress|Device|User=|Group=|ProcSubset|ExtensionDir|ExtensionIm)"
)


def keys(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_the_daemon_survives_and_stays_in_the_hosts_namespaces() -> None:
    service = keys("sdshim.service")
    assert service["ExecStart"] == ["sdshim serve"]
    for key, value in (
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("Restart", "always"),
        ("RestartSec", "0"),
        ("StartLimitIntervalSec", "0"),
        ("KillMode", "process"),
        ("OOMPolicy", "continue"),
        ("RuntimeDirectoryPreserve", "yes"),
        ("TasksMax", "infinity"),
        ("LogRateLimitIntervalSec", "1us"),
        ("LogRateLimitBurst", "4294967295"),
    ):
        assert service[key] == [value]
    assert int(service["FileDescriptorStoreMax"][0]) < int(service["LimitNOFILE"][0]) < 20000
    assert not [key for key in service if NEVER.match(key)]
    assert not {"Requires", "BindsTo", "PartOf", "Requisite"} & set(service)


def test_the_target_orders_nothing_that_waits_for_containers() -> None:
    after = " ".join(keys("sdshim.target")["After"]).split()
    assert {"network.target", "containerd.service", "sdshim.service", "sdshim.socket"} <= set(after)
    assert not [unit for unit in after if re.match(r"docker|kubelet|k3s|podman|crio", unit)]
    for key in ("Wants", "Requires", "PartOf", "BindsTo"):
        assert key not in keys("sdshim.target")


def test_sockets_and_slices() -> None:
    socket = keys("sdshim.socket")
    assert socket["SocketMode"] == ["0600"] and socket["DirectoryMode"] == ["0700"]
    assert socket["TriggerLimitIntervalSec"] == ["0"] and socket["FileDescriptorName"] == ["listen"]
    assert keys("sdshim-.slice.d/10-sdshim.conf") == {"StopWhenUnneeded": ["yes"]}


def test_no_shipped_unit_is_taken_for_a_container() -> None:
    """Their prefix belongs to containers and to the drop-ins that tune them."""
    assert [path.name for path in FILES if path.suffix == ".service"] == ["sdshim.service"]
    assert {path.name for path in UNITS.iterdir() if path.name.startswith("sdshim-")} == {
        "sdshim-.slice.d"
    }


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
@pytest.mark.parametrize("unit", [path.name for path in FILES if path.parent == UNITS])
def test_systemd_takes_them(unit: str, tmp_path: Path) -> None:
    shutil.copytree(UNITS, tmp_path, dirs_exist_ok=True)
    service = tmp_path / "sdshim.service"  # the program need not be installed here
    service.write_text(service.read_text().replace("ExecStart=sdshim", "ExecStart=/bin/true"))
    shutil.rmtree(tmp_path / "sdshim.service.d")  # keys that 252 warns of
    command = ["systemd-analyze", "verify", "--recursive-errors=no", str(tmp_path / unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "sdshim" not in done.stderr, done.stderr
