"""Several Python threads on one piece of work, the arithmetic of each unthreaded.

PyTorch's own threads go on looking for work for a while after each product, on the cores that the
others here need; so they are left out of it.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache

import torch


@lru_cache(maxsize=1)
def _helpers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))


def together(members: int, work: Callable[[int], None], release: Callable[[], None]) -> None:
    """Call `work(member)` for every member at once, the first one in this thread.

    Where a call raises (Ctrl-C is heard in this thread), `release` must let the others go on from
    wherever they wait for it; the exception is raised once all have ended.
    """

    def released(member: int) -> None:
        try:
            work(member)
        except BaseException:
            release()
            raise

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    others = [_helpers(members - 1).submit(released, m) for m in range(1, members)]
    try:
        released(0)
    finally:
        wait(others)
        torch.set_num_threads(threads)
    for other in others:
        other.result()
