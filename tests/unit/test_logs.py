"""Where output goes: the wish of container, namespace and daemon, and the client's streams."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sdshim.core import config, logs
from sdshim.core.errors import InvalidArgument
from sdshim.core.model import Identity, Log, Stdio

NOTHING = Stdio()
FIFOS = Stdio("", "/f/out", "/f/err")
STDIN = Stdio("/f/in")
TTY = Stdio("/f/in", "/f/out", "/f/never", terminal=True)
URI = Stdio("", "file:///x", "file:///x")
SANDBOX = {"io.kubernetes.cri.container-type": "sandbox"}
ME = Identity("default", "box", "0" * 32, "/b", "u.service", "s.slice", "/c", True, "")


def mode(stdio: Stdio, asked: str = "", default: str = "", **notes: str) -> str:
    return logs.decide({"log": asked}, notes, {"log": default}, stdio).mode


@pytest.mark.parametrize(
    ("stdio", "wanted"),
    [
        (NOTHING, {"": "journal", "stdio": "stdio", "both": "journal", "null": "null"}),
        (STDIN, {"": "stdio", "stdio": "stdio", "both": "journal", "null": "null"}),
        (FIFOS, {"": "stdio", "stdio": "stdio", "both": "both", "null": "null"}),
        (TTY, {"": "stdio", "stdio": "stdio", "both": "both", "null": "stdio"}),
        (URI, {"": "stdio", "stdio": "stdio", "both": "stdio", "null": "stdio"}),
    ],
)
def test_the_mode_follows_the_configured_wish_and_the_streams(
    stdio: Stdio, wanted: dict[str, str]
) -> None:
    assert {wish: mode(stdio, default=wish) for wish in wanted} == wanted


def test_journal_of_the_configuration_leaves_terminals_and_log_uris_to_their_clients() -> None:
    found = [mode(stdio, default="journal") for stdio in (NOTHING, STDIN, FIFOS, TTY, URI)]
    assert found == ["journal", "journal", "journal", "both", "stdio"]


def test_a_pods_sandbox_says_nothing_and_gets_no_journal_unless_it_asks() -> None:
    assert mode(NOTHING, default="journal", **SANDBOX) == "stdio"
    assert mode(NOTHING, **SANDBOX) == "stdio"
    assert mode(NOTHING, **SANDBOX, **{"io.sdshim.log": "journal"}) == "journal"


def test_the_containers_word_wins_over_the_namespaces_and_that_over_the_daemons() -> None:
    made = config.parse({"log": "both", "namespaces": {"quiet": {"log": "null"}}})
    assert [made.logging(space)["log"] for space in ("default", "quiet")] == ["both", "null"]
    found = logs.decide({"log": "journal"}, {}, made.logging("quiet"), FIFOS)
    assert (found.mode, found.wish) == ("journal", "journal")
    noted = logs.decide({"log": "journal"}, {"io.sdshim.log": "both"}, {}, FIFOS)
    assert noted.mode == "both"


@pytest.mark.parametrize(
    ("stdio", "wish", "text"),
    [
        (TTY, "journal", "with a terminal"),
        (TTY, "null", "with a terminal"),
        (URI, "journal", "beside the log URI"),
        (URI, "both", "beside the log URI"),
        (FIFOS, "file", "is not one of stdio, journal, both, null"),
    ],
)
def test_what_a_container_asks_for_and_cannot_have_is_refused(
    stdio: Stdio, wish: str, text: str
) -> None:
    with pytest.raises(InvalidArgument, match=text):
        mode(stdio, **{"io.sdshim.log": wish})


@pytest.mark.parametrize(
    ("wish", "wanted"),
    [
        ("", ["journal", "stdio", "stdio", "stdio", "stdio"]),
        ("stdio", ["stdio", "stdio", "stdio", "stdio", "stdio"]),
        ("journal", ["journal", "journal", "both", "stdio", "stdio"]),
        ("both", ["journal", "journal", "both", "stdio", "stdio"]),
        ("null", ["stdio", "stdio", "stdio", "stdio", "stdio"]),
    ],
)
def test_an_exec_whose_client_asks_for_its_streams_always_gets_them(
    wish: str, wanted: list[str]
) -> None:
    found = [logs.of_exec(Log(wish=wish), s) for s in (NOTHING, STDIN, FIFOS, TTY, URI)]
    assert found == wanted


def test_the_fields_are_those_of_container_image_pod_exec_and_trace() -> None:
    cri = "io.kubernetes.cri."
    notes = {
        f"{cri}container-name": "app",
        f"{cri}image-name": "busybox:1",
        f"{cri}sandbox-name": "web",
        f"{cri}sandbox-namespace": "shop",
        f"{cri}sandbox-uid": "u-1",
        f"{cri}sandbox-id": "abc",
    }
    log = logs.decide({}, notes, {"log_stderr_priority": "warning"}, NOTHING)
    assert (log.stdout_priority, log.stderr_priority) == (6, 4)
    me = replace(ME, log=log, exec_id="e", traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
    assert logs.fields(me) == {
        "CONTAINER_ID": "box",
        "CONTAINER_NAME": "app",
        "CONTAINER_NAMESPACE": "default",
        "CONTAINER_EXEC_ID": "e",
        "IMAGE_NAME": "busybox:1",
        "POD_NAME": "web",
        "POD_NAMESPACE": "shop",
        "POD_UID": "u-1",
        "POD_ID": "abc",
        "TRACE_ID": "a" * 32,
    }
    assert logs.name(ME) == "box"


@pytest.mark.parametrize(
    ("notes", "wanted"),
    [
        (
            {
                "io.kubernetes.cri-o.ImageName": "busybox:1",
                "io.kubernetes.cri-o.Name": "web",
                "io.kubernetes.cri-o.Namespace": "shop",
                "io.kubernetes.cri-o.SandboxID": "abc",
                "io.kubernetes.container.name": "app",
                "io.kubernetes.pod.uid": "u-1",
            },
            {
                "CONTAINER_NAME": "app",
                "IMAGE_NAME": "busybox:1",
                "POD_NAME": "web",
                "POD_NAMESPACE": "shop",
                "POD_UID": "u-1",
                "POD_ID": "abc",
            },
        ),
        ({"nerdctl/name": "app", "nerdctl/namespace": "default"}, {"CONTAINER_NAME": "app"}),
        ({"io.kubernetes.pod.name": "web"}, {"POD_NAME": "web"}),
        (
            {"io.sdshim.name": "app", "io.sdshim.image": "busybox:1", "io.sdshim.pod": "web"},
            {"CONTAINER_NAME": "app", "IMAGE_NAME": "busybox:1", "POD_NAME": "web"},
        ),
        ({}, {}),
    ],
    ids=["cri-o", "nerdctl", "kubelet's labels", "ours", "ctr"],
)
def test_each_clients_names_of_container_image_and_pod_are_known(
    notes: dict[str, str], wanted: dict[str, str]
) -> None:
    assert logs.named(notes) == wanted


def test_the_sandbox_of_a_pod_says_nothing_by_itself() -> None:
    for name in ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"):
        assert logs.decide({}, {name: "sandbox"}, {}, NOTHING).mode == "stdio"
        assert logs.decide({}, {name: "container"}, {}, NOTHING).mode == "journal"


def test_a_field_is_one_printable_line() -> None:
    log = logs.decide({}, {"io.sdshim.name": "a\nExecStart=/bin/sh" + "x" * 999}, {}, NOTHING)
    (name,) = dict(log.fields).values()
    assert name.startswith("a?ExecStart") and len(name) == logs.MAX_FIELD


def test_the_faults_of_a_namespaces_table_are_named_with_the_others() -> None:
    document = {
        "log": "loud",
        "namespaces": {"k8s.io": {"log": 1, "log_level": "x", "log_stdout_priority": "9"}},
    }
    with pytest.raises(InvalidArgument) as caught:
        config.parse(document)
    for words in (
        "log 'loud' is not one of",
        "namespaces.k8s.io: unknown key 'log_level'",
        "namespaces.k8s.io: log must be a str",
        "namespaces.k8s.io: log_stdout_priority '9' is neither",
    ):
        assert words in str(caught.value)
    with pytest.raises(InvalidArgument, match=r"\[namespaces.NAME\]"):
        config.parse({"namespaces": {"log": "both"}})


def test_a_configuration_with_namespaces_is_printed_and_reads_back_as_itself() -> None:
    import tomllib

    made = config.parse({"namespaces": {'a "b"\\c': {"log": "both"}, "k8s.io": {"log": "null"}}})
    assert config.parse(tomllib.loads(config.render(made))) == made
