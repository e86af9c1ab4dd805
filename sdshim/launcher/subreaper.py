"""subreaper.c for machines without a C compiler; the reasons for each step are told there.

Run as ``python3 -I -S subreaper.py PIDFILE RUNTIME ARGUMENT...``; standard library only.
"""

import _signal as signal  # type: ignore[import-not-found]  # the signal module loads enum: 4 ms
import _socket  # the same
import ctypes
import fcntl
import os
import select
import sys
import termios
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

UNKNOWN = 255
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36


def prctl(option: int, value: int) -> None:
    """prctl(2); an error changes nothing for us."""
    ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def main(pid_file: str, argv: list[str]) -> int:
    """The exit status, unless it ends by a signal."""
    with open("/proc/self/environ", "rb") as file:  # the interpreter may have added LC_CTYPE
        entries = [x.split(b"=", 1) for x in file.read().split(b"\0") if b"=" in x]
    environ = {x[0]: x[1] for x in entries}
    address = environ.pop(b"NOTIFY_SOCKET", b"")
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()  # posix_spawn would leave two signals ignored
    if child == 0:
        become(argv, environ, before)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    _, status = os.waitpid(child, 0)
    if status:
        code = os.waitstatus_to_exitcode(status)
        return 128 - code if code < 0 else code
    pid = read_pid(pid_file)
    if pid <= 0:
        return UNKNOWN
    notify = say_ready(address)
    status = wait(pid)
    while notify is not None and any(fcntl.ioctl(notify, termios.TIOCOUTQ, b"1234")):
        time.sleep(0.0005)
    return end_as(status)


def become(argv: list[str], environ: dict[bytes, bytes], mask: set[int]) -> "NoReturn":
    """Be the runtime."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # the interpreter ignores them
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        os.execvpe(argv[0], argv, environ)
    except OSError as error:
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def say_ready(address: bytes) -> _socket.socket | None:
    """READY=1 to a path or an abstract socket; the socket it was sent by."""
    if len(address) < 2:
        return None
    if address.startswith(b"@"):
        address = b"\0" + address[1:]
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    try:  # noqa: SIM105  # contextlib is one more import
        sock.sendto(b"READY=1", address)
    except OSError:
        pass
    return sock


def read_pid(path: str) -> int:
    """The pid in the runtime's file, 0 if there is none."""
    try:
        with open(path, "rb") as file:
            pid = int(file.read(31))
        os.open(f"/proc/{pid}", os.O_PATH)
        os.utime(path)
    except (OSError, ValueError):
        return 0
    return pid


def wait(pid: int) -> int:
    """Its wait status; signals are passed on meanwhile."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        pidfd = -1
    awaited = pid
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        awaited = stand_in(pidfd)
    while True:
        child, status = reap()
        if child == awaited:
            return status
        if child:
            continue
        number = signal.sigwaitinfo(signal.valid_signals()).si_signo
        if number != signal.SIGCHLD:
            try:  # noqa: SIM105
                signal.pidfd_send_signal(pidfd, number)
            except OSError:
                pass


def reap() -> tuple[int, int]:
    """One child that has ended and its wait status, or 0."""
    try:
        return os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return 0, 0


def stand_in(pidfd: int) -> int:
    """For a process that is not our child: a child that ends when it has ended, with 255."""
    child = os.fork()
    if child == 0:
        if pidfd >= 0:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll()
        os._exit(UNKNOWN)
    return child


def end_as(status: int) -> int:
    """The exit status; or end by the signal that ended the process."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    prctl(PR_SET_DUMPABLE, 0)
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
    return 128 - code


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: subreaper.py PIDFILE RUNTIME ARGUMENT...")
    os._exit(main(sys.argv[1], sys.argv[2:]))
