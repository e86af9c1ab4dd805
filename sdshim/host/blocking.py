"""System calls that may hang (a mount whose server is away): each in a thread of its own.

asyncio's pool of threads has a handful for everybody, so a few that hang would stop all others, and
it waits for them at the end. A thread of ours is left behind when its time is up.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def apart(work: Callable[[], T], seconds: float) -> T:
    """What `work` returns or raises. Raises TimeoutError when it has not ended after `seconds`;
    it may go on then."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # it is T then

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        try:
            loop.call_soon_threadsafe(settle, result, failure)
        except RuntimeError:  # the loop is closed: nobody wants to know any more
            return

    threading.Thread(target=run, name="blocking", daemon=True).start()
    async with asyncio.timeout(seconds):
        return await future
