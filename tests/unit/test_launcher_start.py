"""`start`: what each containerd understands, what is left in the bundle, what errors look like."""

from __future__ import annotations

import resource
import shutil
import string
import subprocess
import sys

import pytest
from google.protobuf.any_pb2 import Any

from sdshim.launcher import start as full_start
from sdshim.launcher.cmdline import Fault, check_id, parse
from sdshim.pb import bootstrap_pb2, control_pb2, runc_pb2
from tests.unit.test_launcher_kit import (
    BINARY,
    GRPC,
    LAUNCHER,
    SCRIPT,
    TTRPC,
    Daemon,
    Node,
    forks,
    node,
    parse_1_6,
    parse_2_3,
    parse_json_or_plain,
    tracer,
)

__all__ = ["node"]

SHELLS = [
    pytest.param([], id="sh"),
    pytest.param(["bash", "--posix"], id="bash"),
    pytest.param(["busybox", "sh"], id="busybox"),
]


def options_any(binary_name: str = "", criu_path: str = "") -> bytes:
    """stdin of containerd up to 2.2."""
    options = runc_pb2.Options(root="/run/containerd/runc", systemd_cgroup=True)
    options.binary_name, options.criu_path = binary_name, criu_path
    url = "containerd.runc.v1.Options"
    return Any(type_url=url, value=options.SerializeToString()).SerializeToString()


def bootstrap(
    task_id: str = "c1", namespace: str = "default", options: bytes = b"", **other: object
) -> bytes:
    """stdin of containerd 2.3."""
    params = bootstrap_pb2.BootstrapParams(
        instance_id=task_id,
        namespace=namespace,
        containerd_version="v2.3.3~ds1-1+b2",
        containerd_ttrpc_address=TTRPC,
        containerd_grpc_address=GRPC,
        containerd_binary=BINARY,
        socket_dir="/run/containerd/s",
    )
    for name, value in other.items():
        setattr(params, name, value)
    if options:
        params.extensions.add().value.ParseFromString(options)
    return params.SerializeToString()


def the_socket(node: Node, namespace: str = "default") -> str:
    return f"unix://{node.run}/s/{namespace}"


@pytest.fixture(params=["fast", "full"])
def ready(request: pytest.FixtureRequest, node: Node) -> object:
    """A node whose daemon serves `default` already, or must be asked first."""
    if request.param == "fast":
        node.serve()
        yield node
        return
    address = control_pb2.ListenResponse(address=the_socket(node)).SerializeToString()
    with Daemon(node.run, {"Listen": address}) as daemon:
        yield node
        assert [call[:2] for call in daemon.calls] == [("sdshim.v1.Control", "Listen")]
        assert (
            daemon.calls[0][2] == control_pb2.ListenRequest(namespace="default").SerializeToString()
        )


@pytest.mark.parametrize(
    "stdin",
    [
        pytest.param(None, id="dev-null"),
        pytest.param(b"", id="empty-pipe"),
        pytest.param(options_any(), id="options"),
        pytest.param(options_any(binary_name="crun\n\n"), id="options-with-newlines"),
        pytest.param(
            Any(type_url="c1", value=b"\0\xff\n\x81\x88" * 50).SerializeToString(), id="any-bytes"
        ),
        pytest.param(b"\n" * 9, id="newlines"),
        pytest.param(b"\0\0\n\xff", id="garbage"),
    ],
)
def test_containerd_up_to_2_2_gets_the_plain_address(ready: Node, stdin: bytes | None) -> None:
    result = ready.start(stdin=stdin)
    assert (result.code, result.err) == (0, "")
    expected = (2, the_socket(ready), "ttrpc")
    assert parse_1_6(result.out) == expected
    assert parse_json_or_plain(result.out, 2) == expected, "1.7"
    assert parse_json_or_plain(result.out, 3) == expected, "2.0 to 2.2"
    assert parse_2_3(result.out, trim=True) == parse_2_3(result.out, trim=False) == expected
    assert ready.facts()["answer_version"] == "2"


@pytest.mark.parametrize("level", [0, -8, -4, 4, 8, 10, 12])
@pytest.mark.parametrize("options", [b"", options_any(binary_name="crun")], ids=["bare", "options"])
def test_containerd_2_3_gets_a_protobuf_answer(ready: Node, level: int, options: bytes) -> None:
    result = ready.start(stdin=bootstrap(log_level=level, options=options))
    assert (result.code, result.err) == (0, "")
    expected = (3, the_socket(ready), "ttrpc")
    assert parse_2_3(result.out, trim=True) == parse_2_3(result.out, trim=False) == expected
    facts = ready.facts()
    assert facts["answer_version"] == "3"
    assert facts["runtime_version"] == "v2.3.3~ds1-1+b2"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("task_id", ["c1", "ten-bytes-", "x" * 76, "containerd"])
@pytest.mark.parametrize("namespace", ["default", "ten.bytes0", "n" * 40])
def test_a_length_of_ten_is_a_newline_and_still_understood(
    node: Node, shell: list[str], task_id: str, namespace: str
) -> None:
    if shell and not shutil.which(shell[0]):
        pytest.skip(f"no {shell[0]} here")
    task_id = task_id.replace("bytes-", "bytes1")
    node.shell = shell
    node.serve(namespace)
    stdin = bootstrap(task_id, namespace, options=options_any(), log_level=10)
    result = node.start(task_id, namespace=namespace, stdin=stdin)
    assert (result.code, result.err) == (0, "")
    assert parse_2_3(result.out, trim=True) == (3, the_socket(node, namespace), "ttrpc")
    assert node.facts()["runtime_version"] == "v2.3.3~ds1-1+b2"
    plain = node.start(task_id, namespace=namespace, stdin=options_any())
    assert plain.out.decode() == the_socket(node, namespace)


@pytest.mark.parametrize(
    ("task_id", "namespace"),
    [("containerd", "unc.v1.Options"), ("containerd.runc.v1", "default"), ("c", "o")],
)
def test_options_whose_type_begins_like_the_id_are_no_bootstrap(
    node: Node, task_id: str, namespace: str
) -> None:
    node.serve(namespace)
    result = node.start(task_id, namespace=namespace, stdin=options_any())
    assert result.out.decode() == the_socket(node, namespace)


@pytest.mark.parametrize("other", [{"instance_id": "c2"}, {"namespace": "moby"}])
def test_bootstrap_of_another_task_gets_the_answer_every_version_takes(
    ready: Node, other: dict[str, str]
) -> None:
    result = ready.start(stdin=bootstrap(**other))  # type: ignore[arg-type]
    assert result.out.decode() == the_socket(ready)


def test_the_bundle_says_which_containerd_wants_the_events(ready: Node) -> None:
    ready.env["SCHED_CORE"] = "1"
    assert ready.start("c1", "-debug").code == 0
    assert ready.facts() == {
        "namespace": "default",
        "id": "c1",
        "ttrpc_address": TTRPC,
        "grpc_address": GRPC,
        "publish_binary": BINARY,
        "debug": "1",
        "sched_core": "1",
        "max_shim_version": "2",
        "runtime_version": "",
        "answer_version": "2",
        "nofile": str(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    }
    assert (ready.bundle / "address").read_bytes().decode() == the_socket(ready), "no newline"
    assert sorted(path.name for path in ready.bundle.iterdir()) == [
        "address",
        "rootfs",
        "sdshim.start",
    ]


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_what_bootstrap_params_say_wins_over_flags_and_environment(node: Node, level: str) -> None:
    node.serve()
    stdin = bootstrap(
        containerd_ttrpc_address="/other.ttrpc",
        containerd_grpc_address="/other.sock",
        containerd_binary="/other",
        log_level=bootstrap_pb2.LogLevel.Value(f"LOG_LEVEL_{level}"),
        options=options_any(criu_path="\n\0\n"),
    )
    address = control_pb2.ListenResponse(address=the_socket(node)).SerializeToString()
    with Daemon(node.run, {"Listen": address}):
        result = node.start(stdin=stdin)
    assert parse_2_3(result.out, trim=True) == (3, the_socket(node), "ttrpc")
    facts = node.facts()
    assert facts["ttrpc_address"] == "/other.ttrpc"
    assert facts["grpc_address"] == "/other.sock"
    assert facts["publish_binary"] == "/other"
    assert facts["debug"] == ("1" if level == "DEBUG" else "0")


LEGAL = ["a", "0", "Z9", "a.b_c-d", string.ascii_letters[:38] + "-" + string.digits, "x" * 76]
ILLEGAL = ["", "-a", "a-", ".a", "a..b", "a._b", "a/b", "a b", "ä", "a\n", "a:b", "x" * 77, "../c"]


@pytest.mark.parametrize("name", LEGAL)
def test_every_legal_id_and_namespace_is_served_on_the_fast_path(node: Node, name: str) -> None:
    namespace = name[:40].rstrip("-")
    node.env["SDSHIM_PYTHON"] = "/bin/false"
    node.serve(namespace)
    result = node.start(name, namespace=namespace)
    assert (result.code, result.out.decode()) == (0, the_socket(node, namespace))
    assert check_id(name, "id") == name


@pytest.mark.parametrize("name", ILLEGAL)
@pytest.mark.parametrize("which", ["id", "namespace"])
def test_an_illegal_name_is_refused_with_one_clear_line(node: Node, name: str, which: str) -> None:
    node.serve()
    task_id, namespace = (name, "default") if which == "id" else ("c1", name)
    result = node.start(task_id, namespace=namespace)
    assert result.code == 1
    assert result.out == b""
    assert result.err.startswith(f"containerd-shim-systemd-v1: {'no ' if not name else ''}{which}")
    assert not (node.bundle / "address").exists()
    with pytest.raises(Fault):
        check_id(name, which)


def test_a_daemon_that_is_not_there_is_an_error_with_cause_and_hint(node: Node) -> None:
    result = node.start()
    assert (result.code, result.out) == (1, b"")
    assert result.err == (
        f"containerd-shim-systemd-v1: sdshim is not running: connect {node.run}/sdshim.sock: "
        "No such file or directory (hint: systemctl start sdshim.socket; journalctl -u sdshim)\n"
    )


def test_an_error_of_the_daemon_reaches_the_caller_in_full(node: Node) -> None:
    with Daemon(node.run, {"Listen": (7, "uid 1000 may not: permission denied")}):
        result = node.start()
    assert result.code == 1
    assert "no socket for namespace default: uid 1000 may not: permission denied" in result.err
    assert result.err.count("\n") == 1


def test_a_daemon_that_restarts_during_the_call_is_asked_again(node: Node) -> None:
    address = control_pb2.ListenResponse(address=f"{node.run}/s/default").SerializeToString()
    with Daemon(node.run, {"Listen": "close", "Listen again": address}) as daemon:
        result = node.start()
    assert (result.code, result.err, len(daemon.calls)) == (0, "", 2)
    assert result.out.decode() == the_socket(node), "a bare path becomes an address"


@pytest.mark.parametrize("missing", ["ready", "socket"])
def test_a_daemon_not_ready_or_a_file_in_place_of_the_socket_takes_the_full_way(
    node: Node, missing: str
) -> None:
    node.serve()
    if missing == "ready":
        (node.run / "ready").unlink()
    else:
        (node.run / "s" / "default").unlink()
        (node.run / "s" / "default").touch()
    assert "sdshim is not running" in node.start().err


def test_a_bundle_that_cannot_be_written_is_named(ready: Node) -> None:
    (ready.bundle / "address").mkdir()
    if (ready.run / "ready").exists():
        address = control_pb2.ListenResponse(address=the_socket(ready)).SerializeToString()
        with Daemon(ready.run, {"Listen": address}):
            result = ready.start(stdin=options_any())
    else:
        result = ready.start(stdin=options_any())
    assert (result.code, result.out) == (1, b"")
    assert f"cannot write into the bundle {ready.bundle}: Is a directory" in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("stdin", [b"", options_any(), bootstrap(options=options_any())])
def test_the_fast_path_starts_no_process(node: Node, stdin: bytes) -> None:
    node.serve()
    node.env["SDSHIM_PYTHON"] = "/bin/false"
    node.shell = tracer(node.root / "trace")
    assert node.start(stdin=stdin).code == 0
    assert forks(node.root / "trace") == []


@pytest.mark.parametrize("dashes", ["-", "--"])
@pytest.mark.parametrize("joined", [False, True])
def test_flags_are_accepted_in_each_of_gos_forms(ready: Node, dashes: str, joined: bool) -> None:
    given = {"namespace": "default", "address": GRPC, "publish-binary": BINARY, "id": "c1"}
    flags = []
    for name, value in given.items():
        flags += [f"{dashes}{name}={value}"] if joined else [f"{dashes}{name}", value]
    flags.append(f"{dashes}debug=true" if joined else f"{dashes}debug")
    if joined and (ready.run / "ready").exists():
        address = control_pb2.ListenResponse(address=the_socket(ready)).SerializeToString()
        with Daemon(ready.run, {"Listen": address}):
            result = ready.launch(*flags, "start")
    else:
        result = ready.launch(*flags, "start")
    assert (result.code, result.out.decode()) == (0, the_socket(ready))
    assert ready.facts()["debug"] == "1"
    assert ready.facts()["grpc_address"] == GRPC


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "no action given"),
        (["-id", "c", "-namespace", "n", "restart"], "unknown action 'restart'"),
        (["-id", "c", "-namespace", "n", "start", "x"], "unexpected argument 'x' after start"),
        (["-frobnicate", "start"], "flag provided but not defined: -frobnicate"),
        (["start"], "no namespace given"),
        (["-namespace"], "flag needs an argument: -namespace"),
        (["-debug=maybe", "start"], "invalid boolean value 'maybe' for -debug"),
    ],
)
def test_a_wrong_command_line_is_explained_on_stderr(
    node: Node, arguments: list[str], text: str
) -> None:
    result = node.launch(*arguments)
    assert (result.code, result.out) == (1, b"")
    assert text in result.err


def test_help_is_printed_and_is_no_failure(node: Node) -> None:
    for flag in ("-h", "--help"):
        result = node.launch(flag)
        assert (result.code, result.err) == (0, "")
        assert result.out.startswith(b"usage: containerd-shim-systemd-v1 -namespace NS")


def test_the_launcher_finds_its_library_beside_itself_and_through_a_link(node: Node) -> None:
    prefix = node.root / "opt"
    shutil.copytree(LAUNCHER, prefix / "lib/sdshim/sdshim/launcher")
    shutil.copy(LAUNCHER.parent / "__init__.py", prefix / "lib/sdshim/sdshim")
    (prefix / "bin").mkdir()
    installed = prefix / "bin" / SCRIPT.name
    shutil.copy(SCRIPT, installed)
    link = node.root / "link"
    link.symlink_to(installed)
    del node.env["SDSHIM_LAUNCHER_DIR"]
    for program in (installed, link):
        done = subprocess.run(
            [str(program), "-v"], env=node.env, capture_output=True, check=True, cwd=node.bundle
        )
        assert done.stdout.startswith(b"containerd-shim-systemd-v1:\n  Version:  ")
    shutil.rmtree(prefix / "lib")
    broken = subprocess.run(
        [str(link), "-v"], env=node.env, capture_output=True, check=False, cwd=node.bundle
    )
    assert broken.returncode == 1
    assert b"full.py is missing (hint: reinstall sdshim)" in broken.stderr


def test_full_decides_by_id_namespace_and_one_field_only_containerd_2_3_sets() -> None:
    for stdin in (
        b"",
        options_any(),
        b"\xff\xff",
        Any(type_url="c1", value=b"default").SerializeToString(),
    ):
        assert full_start.bootstrap_params(stdin, "c1", "default", cut=False) is None
    params = full_start.bootstrap_params(bootstrap(), "c1", "default", cut=False)
    assert params is not None
    assert params.text(5) == TTRPC


def test_a_newline_in_an_address_never_makes_a_line_of_its_own(node: Node) -> None:
    node.serve()
    node.env["TTRPC_ADDRESS"] = "/x\ndebug=1"
    address = control_pb2.ListenResponse(address=the_socket(node)).SerializeToString()
    with Daemon(node.run, {"Listen": address}):
        result = node.start()
    assert result.code == 1
    assert "ttrpc_address contains a newline" in result.err


def test_start_loads_no_more_than_it_needs() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from sdshim.launcher import actions, start, delete\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(LAUNCHER.parents[1])],
        capture_output=True,
        check=True,
        text=True,
    )
    heavy = {"re", "enum", "socket", "subprocess", "json", "typing", "dataclasses", "ctypes"}
    assert not heavy & set(done.stdout.split())


def test_parse_keeps_gos_order_of_flags_and_action() -> None:
    flags = parse(["-namespace", "n", "--id=c", "-debug=false", "-bundle", "/b", "delete"])
    assert (flags.action, flags["id"], flags["bundle"], flags.debug) == ("delete", "c", "/b", False)


def test_the_scripts_are_executable_and_parse_in_every_posix_shell() -> None:
    for script in (SCRIPT, LAUNCHER / "create", LAUNCHER / "exit-hook"):
        assert script.stat().st_mode & 0o111 == 0o111
        for shell in (["sh"], ["bash", "--posix"], ["busybox", "sh"]):
            if shutil.which(shell[0]):
                subprocess.run([*shell, "-n", str(script)], check=True)
