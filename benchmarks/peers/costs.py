"""What a step costs beside the plain one: turns, processor time, medians and their spread."""

from collections.abc import Callable, Mapping
from time import process_time

import numpy as np


def table(title: str, steps: Mapping[str, Callable[[], None]], seconds: float) -> None:
    """Print a row a contender; the first is the plain step. `seconds` is for each of them.

    A turn is as many steps in a row as take ten milliseconds plain, every contender after the other
    in an order that changes from turn to turn; ratios are of one turn. Slow contenders have fewer.
    """
    names = list(steps)
    for step in steps.values():
        for _ in range(3):
            step()
    each = {n: _seconds(steps[n], 3) for n in names}
    rows = [max(10, int(0.01 / each[names[0]]) // 10 * 10)] * len(names)
    turns = max(5, int(seconds / 0.01))
    told: dict[str, list[float]] = {n: [] for n in names}
    spent = dict.fromkeys(names, 0.0)
    rng = np.random.default_rng(0)
    for turn in range(turns):
        if spent[names[0]] > 2 * seconds and turn >= 5:
            break  # ratios are to a plain step of the same turn
        for k in rng.permutation(len(names)):
            name = names[k]
            if spent[name] > 2 * seconds and turn >= 5:
                continue
            slow = each[name] > 5 * each[names[0]]
            told[name].append(_seconds(steps[name], 2 if slow else rows[k]))
            spent[name] += told[name][-1] * (2 if slow else rows[k])
    plain = np.array(told[names[0]])
    print(f"\n{title}\n{'':<44}{'ms':>9}{'ratio':>8}  [p25, p75]   turns")
    for name, values in told.items():
        ratio = np.array(values) / plain[: len(values)]
        low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
        print(
            f"{name:<44}{np.median(values) * 1e3:9.3f}{middle:8.3f}  [{low:.3f}, {high:.3f}]"
            f"{len(values):8}",
            flush=True,
        )


def _seconds(step: Callable[[], None], times: int) -> float:
    begun = process_time()
    for _ in range(times):
        step()
    return (process_time() - begun) / times
