"""Doctor's findings and exit status, and what its checks read out of files."""

from __future__ import annotations

import itertools
import os

import pytest

from sdshim.core.diagnosis import Act, Finding, Level, Repair, exit_status, lasting
from sdshim.host.inventory import started
from sdshim.survey.checks import CHECKS, place
from sdshim.survey.facts import number


def finding(level: Level = Level.WARNING, subject: str = "x", *, passing: bool = False) -> Finding:
    return Finding("units", level, subject, "text", passing=passing)


@pytest.mark.parametrize(
    ("levels", "status"),
    [
        ((), 0),
        ((Level.WARNING,), 1),
        ((Level.WARNING, Level.FAULT), 2),
        ((Level.UNKNOWN, Level.WARNING), 3),
        ((Level.UNKNOWN, Level.FAULT, Level.WARNING), 2),
    ],
)
def test_the_exit_status_is_that_of_monitoring_plugins(
    levels: tuple[Level, ...], status: int
) -> None:
    for order in itertools.permutations(levels):
        assert exit_status(finding(level) for level in order) == status


def test_what_passes_counts_only_when_it_is_seen_twice() -> None:
    first = [finding(subject="a", passing=True), finding(subject="b", passing=True)]
    second = [finding(subject="b", passing=True), finding(subject="c", passing=True)]
    second.append(finding(subject="d"))
    assert [f.subject for f in lasting(first, second)] == ["b", "d"]


def test_a_repair_reads_like_a_command() -> None:
    assert str(Repair(Act.UNMOUNT, ("/a/rootfs",))) == "umount /a/rootfs"


def test_every_check_has_a_name_of_its_own() -> None:
    names = [name for name, _ in CHECKS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("version", "parts"),
    [("1.6.20~ds1", (1, 6, 20)), ("252", (252,)), ("2.1.9+unknown", (2, 1, 9)), ("", ())],
)
def test_versions_of_distributions_are_compared_by_their_numbers(
    version: str, parts: tuple[int, ...]
) -> None:
    assert number(version) == parts


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("[Service]\nPrivateTmp=yes\n", ["PrivateTmp"]),
        ("[Service]\n ProtectSystem = full \nNice=1\n", ["ProtectSystem"]),
        ("PrivateTmp=yes\nPrivateTmp=no\n", []),
        ("ReadOnlyPaths=/a\nReadOnlyPaths=\nProtectHome=false\nProtectProc=default\n", []),
        ("#PrivateTmp=yes\n; BindPaths=/a\n", []),
        ("MemoryMax=200M\nCPUWeight=50\nTasksMax=100\n", []),
    ],
)
def test_drop_ins_that_imply_a_mount_namespace(text: str, keys: list[str]) -> None:
    assert place._set(text, place.IMPLIES_MOUNT_NAMESPACE) == keys


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("PrivateTmp=yes\nProtectSystem=strict\n", []),
        ("DynamicUser=yes\nPrivateDevices=true\n", ["DynamicUser", "PrivateDevices"]),
        ("User=root\nRootDirectory=/\nPrivateUsers=no\n", []),
        ("User=nobody\n", ["User"]),
    ],
)
def test_drop_ins_with_which_no_container_starts(text: str, keys: list[str]) -> None:
    assert place._set(text, place.STOPS_CONTAINERS) == keys


@pytest.mark.parametrize(
    ("source", "holds"),
    [
        ("/run", True),
        ("/run/", True),
        ("/", True),
        ("/var/run", True),
        ("/run/systemd", True),
        ("/run/systemd/notify", True),
        ("/run/lock", False),
        ("/run/systemd/journal", False),
        ("/running", False),
        ("tmpfs", False),
        ("", False),
    ],
)
def test_mounts_that_hold_systemds_notification_socket(source: str, holds: bool) -> None:
    assert place._holds_notify(source) is holds


def test_a_process_is_named_by_its_start() -> None:
    assert started(os.getpid()) > 0
    assert started(0) == -1
