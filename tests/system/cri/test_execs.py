"""Commands in a pod's containers and their streams: `kubectl exec`, `attach`, `logs`, probes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

from tests.system.cri.pods import MARKS, SLEEP
from tests.tools import cri
from tests.tools.remotecommand import STDERR, STDIN, STDOUT

if TYPE_CHECKING:
    from tests.host import Host
    from tests.system.cri.pods import Pods

pytestmark = MARKS


def test_an_exec_that_takes_too_long_is_killed_and_the_container_lives_on(pods: Pods) -> None:
    container = pods.run().run("c", SLEEP)
    with pytest.raises(grpc.RpcError) as caught:
        container.exec("sleep", "2000", timeout=1)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "timeout 1s exceeded" in caught.value.details()
    assert container.exec("true", timeout=10) == (0, "")
    assert "sleep 2000" not in container.exec("ps", "-o", "args")[1]
    assert container.status().state == cri.RUNNING


def test_an_exec_with_streams(pods: Pods) -> None:
    container = pods.run().run("c", SLEEP)
    script = "while read line; do echo got $line; echo err >&2; done; exit 4"
    with container.stream("Exec", cmd=["sh", "-c", script], stdin=True) as remote:
        remote.send(STDIN, b"one\n")
        remote.until(b"got one\n")
        remote.until(b"err\n", STDERR)
    with container.stream("Exec", cmd=["sh", "-c", "echo out; exit 4"]) as remote:
        assert remote.exit_code() == 4
        assert remote.output[STDOUT] == b"out\n"


def test_an_exec_with_a_terminal(pods: Pods) -> None:
    """`kubectl exec -it`: size, input, Ctrl-C, exit code."""
    container = pods.run().run("c", SLEEP)
    script = (
        "trap 'exit 43' INT; read line; echo $line; tty; "
        "until stty size 2>&1 | grep 37; do sleep 0.1; done; while :; do sleep 0.1; done"
    )
    with container.stream("Exec", cmd=["sh", "-c", script], stdin=True, tty=True) as remote:
        remote.send(STDIN, b"hello\n")
        said = remote.until(b"/dev/pts/0\r\n")
        assert said == b"hello\r\nhello\r\n/dev/pts/0\r\n"  # the first is the terminal's echo
        remote.resize(101, 37)
        remote.until(b"37 101\r\n")
        remote.send(STDIN, b"\x03")
        assert remote.exit_code() == 43


def test_attach_to_a_container_with_a_terminal(pods: Pods) -> None:
    container = pods.run().run("c", "", command=["sh"], stdin=True, tty=True)
    with container.stream("Attach", stdin=True, tty=True) as remote:
        remote.send(STDIN, b"echo $((40+2))\n")
        remote.until(b"42\r\n")
    with container.stream("Attach", stdin=True, tty=True) as remote:  # it lived on
        remote.send(STDIN, b"echo $((40+4)); exit 9\n")
        remote.until(b"44\r\n")
    assert container.exited().exit_code == 9
    assert container.logged("44")[0].split(" ")[1] == "stdout"


def test_an_exec_of_a_missing_program_says_so(pods: Pods) -> None:
    container = pods.run().run("c", SLEEP)
    with pytest.raises(grpc.RpcError) as caught:
        container.exec("no-such-program")
    assert 'exec: "no-such-program": executable file not found in $PATH' in caught.value.details()
    assert container.exec("echo", "still here") == (0, "still here\n")


def test_a_log_that_was_moved_away_is_opened_anew(pods: Pods, host: Host) -> None:
    container = pods.run().run(
        "c", "echo before; trap 'echo after' USR1; " + "while :; do sleep 0.05; done"
    )
    container.logged("before")
    log = host.path(f"{container.pod.logs}/{container.log_name}")
    log.rename(log.with_suffix(".old"))
    container.call("ReopenContainerLog")
    host.run(["systemctl", "kill", "--kill-whom=main", "-s", "USR1", container.unit])
    assert [line.split(" ", 1)[1] for line in container.logged("after")] == ["stdout F after"]
    assert len(log.with_suffix(".old").read_text().splitlines()) == 1
