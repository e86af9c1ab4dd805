"""Stats: the counters of a container's cgroup, also between its exit and its Delete.

systemd removes the cgroup when the unit's exit hook has ended, 5 to 20 ms after the exit. So the
counters are read once when the exit is noticed, and kept as they are in the task's state folder,
where the next daemon finds them too; nobody pays for making a message of them who does not ask.
A busy daemon can come too late, a dead one does: what the hook has put by tells then at least
whether the kernel has killed a process for want of memory, and it is the later word on that anyway.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from sdshim.core.errors import NotFound, ShimError
from sdshim.host import stats as counters
from sdshim.host.store import OOM
from sdshim.pb import task_v2_pb2 as pb
from sdshim.pb.wellknown import pack

if TYPE_CHECKING:
    from sdshim.daemon.node import Node
    from sdshim.daemon.process import Process, Task

log = logging.getLogger(__name__)

KEPT = "counters.json"


def stats(node: Node, task: Task) -> bytes:
    """StatsResponse. Raises NotFound in stock's words when the cgroup went before it was read."""
    reader = counters.reader()
    found = _kept(node, task) or reader.read(task.identity.cgroup) or {}
    if text := node.store.text(task.identity, OOM):  # later than what we have read
        found[reader.oom] = text
    if not found:
        raise NotFound("cgroup does not exist: not found")
    message = counters.metrics(found, unified=reader.unified)
    return pb.StatsResponse(stats=pack(message)).SerializeToString()


def keep(node: Node, process: Process) -> None:
    """Put the last counters of a container by. To be called as soon as its init has ended."""
    me = process.identity
    if me.exec_id or (node.store.folder(me) / KEPT).exists():
        return  # of the container nothing has ended, or an earlier daemon has read (more of it)
    found = counters.reader().read(me.cgroup)
    if found is None:
        return
    try:
        node.store.put(me, KEPT, json.dumps(found).encode())
    except ShimError as error:
        log.warning("no statistics of %s after its exit: %s", process, error)


def _kept(node: Node, task: Task) -> counters.Counters | None:
    """What `keep` has put by, None when that is nothing."""
    try:
        data = (node.store.folder(task.identity) / KEPT).read_bytes()
        found = json.loads(data)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
