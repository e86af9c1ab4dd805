"""Stats: the counters of a container's cgroup, also between its exit and its Delete.

systemd removes the cgroup when the unit's exit hook has ended, 5 to 20 ms after the exit. So the
counters are read once when the exit is noticed, and kept as they are in the task's state folder,
where the next daemon finds them too; nobody pays for making a message of them who does not ask.
A busy daemon can come too late, a dead one does: then the hook has copied them. What it has put by
of OOM kills is the later word in any case.
"""

from __future__ import annotations

import contextlib
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
COPIED = "counters"
"""By the exit hook, which looks for the other first."""


def stats(node: Node, task: Task) -> bytes:
    """StatsResponse. Raises NotFound in stock's words when the cgroup went before it was read."""
    reader = counters.reader()
    found = _kept(node, task, reader) or reader.read(task.identity.cgroup) or {}
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


def _kept(node: Node, task: Task, reader: counters.Reader) -> counters.Counters:
    """What `keep` and the hook have put by. Of a cgroup that was going away either may have read a
    part."""
    folder = node.store.folder(task.identity)
    found: counters.Counters = {}
    with contextlib.suppress(OSError):
        found = reader.parse((folder / COPIED).read_text(errors="replace"))
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads((folder / KEPT).read_bytes())
        if isinstance(kept, dict):
            found |= kept
    return found
