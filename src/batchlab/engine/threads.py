"""Several Python threads on one piece of work, the arithmetic of each unthreaded.

PyTorch's own threads go on looking for work for a while after each product, on the cores that the
others here need; so they are left out of it.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch


@lru_cache(maxsize=1)
def _helpers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))


def together(members: int, work: Callable[[int], None]) -> None:
    """Call `work(member)` for every member at once, the first one in this thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        others = [_helpers(members - 1).submit(work, m) for m in range(1, members)]
        work(0)
        for other in others:
            other.result()
    finally:
        torch.set_num_threads(threads)
