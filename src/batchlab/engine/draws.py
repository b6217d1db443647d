"""Everything random, each from its own named generator.

A generator is made afresh from the seed, a name and a counter, so nothing that was drawn before
(by a neighbour, by another phase, before an interruption) can move what is drawn next, and a
checkpoint needs no generator state but the counter.
"""

import hashlib

import torch


def derived(seed: int, name: str, counter: int = 0) -> int:
    """The seed of `name` under `seed`, 63 bits."""
    digest = hashlib.sha256(f"{seed}/{name}/{counter}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, name: str, counter: int = 0) -> torch.Generator:
    """The CPU generator of `name` under `seed`; draws are made on the CPU whatever the device."""
    return torch.Generator().manual_seed(derived(seed, name, counter))


def epoch_order(seed: int, epoch: int, samples: int) -> torch.Tensor:
    """The order in which the epoch visits the training samples: int64, a permutation (N)."""
    return torch.randperm(samples, generator=generator(seed, "order", epoch))


def trial_draw(seed: int, draw: int, order: int, count: int, samples: int) -> torch.Tensor:
    """`count` of `samples` indices without replacement: int64 (count).

    The set depends on `draw` alone, and the permutation of its places on `order` alone: draws
    and orders are crossed, so that what either does to a trial can be told apart.
    """
    return trial_set(seed, draw, count, samples)[trial_order(seed, order, count)]


def trial_set(seed: int, draw: int, count: int, samples: int) -> torch.Tensor:
    """A draw's indices before they are put in an order: int64 (count)."""
    return torch.randperm(samples, generator=generator(seed, "draw", draw))[:count]


def trial_order(seed: int, order: int, count: int) -> torch.Tensor:
    """Which of a set's places comes when: int64 (count)."""
    return torch.randperm(count, generator=generator(seed, "trial order", order))
