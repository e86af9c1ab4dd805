"""A folder of criu's images that a container is to be restored from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sdshim.core import criu, logs
from sdshim.core.errors import InvalidArgument

if TYPE_CHECKING:
    from sdshim.core.criu import Wish
    from sdshim.core.model import Identity

STREAM_NAMES = ("stdin", "stdout", "stderr")


def check(me: Identity) -> None:
    """Whether what stands in the images' folder can be restored with the task's streams. Raises
    InvalidArgument."""
    if not criu.is_path(me.checkpoint):
        raise InvalidArgument(f"checkpoint {me.checkpoint[:256]!r} is not an absolute path")
    if not (Path(me.checkpoint) / criu.INVENTORY).is_file():
        raise InvalidArgument(f"checkpoint {me.checkpoint}: there are no images of criu's")
    keys, _ = notes(me)
    stdio = logs.process_side(me.stdio, "", me.log.mode)
    for number in keys:
        name = STREAM_NAMES[number]
        if stdio.terminal or not getattr(stdio, name):
            raise InvalidArgument(
                f"checkpoint {me.checkpoint}: its container had a {name}, this task has none",
                hint="restore it with the streams of the task that was checkpointed",
            )


def notes(me: Identity) -> tuple[dict[int, str], Wish]:
    """What our own checkpoint has noted beside the images; nothing beside another shim's."""
    path = Path(me.checkpoint) / criu.NOTES
    try:
        return criu.decode_notes(path.read_bytes())
    except FileNotFoundError:
        return {}, criu.Wish()
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read", cause=str(error)) from error
