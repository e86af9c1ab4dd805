"""`doctor --fix`: what is left is removed, nothing of a living container is touched.

Before each repair the node is looked at again: a finding that is gone, or whose remains belong to
somebody again, is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core.diagnosis import Act
from sdshim.core.errors import FailedPrecondition, ShimError
from sdshim.host import cgroup, mounts
from sdshim.pb import control_pb2
from sdshim.survey import checks, facts, node
from sdshim.systemd.bus import Bus
from sdshim.systemd.manager import Manager
from sdshim.ttrpc.client import Client

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sdshim.core.config import Config
    from sdshim.core.diagnosis import Finding, Repair

RUNTIME_S = 30.0


async def repair(config: Config, findings: Sequence[Finding]) -> list[tuple[Finding, str]]:
    """Do what the findings' repairs say; each with why it could not be done, empty for done."""
    done = []
    for finding in findings:
        if finding.repair is None:
            continue
        now = checks.run(await facts.gather(config))
        if not any(one.identity == finding.identity and one.repair for one in now):
            continue  # gone by itself, by an earlier repair, or somebody's again
        try:
            await _do(config, finding.repair)
            done.append((finding, ""))
        except (ShimError, OSError) as error:
            done.append((finding, str(error)))
    return done


async def _do(config: Config, repair: Repair) -> None:
    arguments = repair.arguments
    match repair.act:
        case Act.RESET_FAILED:
            await _reset_failed(arguments[0])
        case Act.UNMOUNT:
            await mounts.unmount_tree(Path(arguments[0]))
        case Act.REMOVE_CGROUP:
            cgroup.remove(arguments[0])
        case Act.DELETE_RUNTIME_STATE:
            await _delete_runtime_state(*arguments)
        case Act.REMOVE_FILE:
            _remove_file(Path(arguments[0]))
        case Act.REMOVE_FOLDER:
            _remove_folder(Path(arguments[0]))
        case Act.CLEAN_UP:
            await _clean_up(config, *arguments)
        case Act.CHMOD:
            _chmod(*arguments)


def _chmod(mode: str, path: str) -> None:
    """Not of what a link leads to: O_NOFOLLOW."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        Path(f"/proc/self/fd/{fd}").chmod(int(mode, 8))
    finally:
        os.close(fd)


async def _reset_failed(unit: str) -> None:
    bus = Bus()
    await bus.connect()
    try:
        await Manager(bus).reset_failed(unit)
    finally:
        await bus.close()


async def _delete_runtime_state(binary: str, root: str, id_: str) -> None:
    process = await asyncio.create_subprocess_exec(
        binary,
        "--root",
        root,
        "delete",
        "--force",
        id_,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), RUNTIME_S)
    if process.returncode:
        raise OSError(f"{binary} delete: {out.decode(errors='replace').strip()}")


def _remove_file(path: Path) -> None:
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a FIFO's folder, when it was the last in it
        path.parent.rmdir()


def _remove_folder(path: Path) -> None:
    """A state folder with its parents, as far as they are empty then."""
    shutil.rmtree(path)
    for parent in (path.parent, path.parent.parent):
        try:
            parent.rmdir()
        except OSError:
            break


async def _clean_up(config: Config, namespace: str, id_: str, token: str) -> None:
    """The launcher's `delete`, for this incarnation only; nothing is published."""
    request = control_pb2.CleanupRequest(namespace=namespace, id=id_, token=token)
    socket = str(Path(config.run_dir) / "sdshim.sock")
    async with await Client.connect(socket) as client:
        payload = request.SerializeToString()
        await client.call(facts.CONTROL, "Cleanup", payload, timeout=RUNTIME_S)
    if any(entry.token == token for entry in node.entries(config)):
        text = f"the daemon does not know {namespace}/{id_}"
        raise FailedPrecondition(text, hint="systemctl restart sdshim, then again")
