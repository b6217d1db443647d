"""A team of threads: everyone at once, and nobody left waiting at a gate."""

import numpy as np
import pytest
import torch

from batchlab.engine.draws import generator
from batchlab.engine.loop import LINE, Loop
from batchlab.engine.mlp import linear_layers
from batchlab.engine.step import CompiledSGD
from batchlab.engine.threads import together
from batchlab.spec import Model
from batchlab.workloads.mlp import build
from tests import toy


def test_gates_keep_a_team_in_step() -> None:
    from batchlab.engine.team import pass_gate

    gates, seen = np.zeros(3 * LINE, np.int64), np.zeros((3, 200), np.int64)

    def work(member: int) -> None:
        for turn in range(200):
            seen[member, turn] = turn + 1
            pass_gate(gates, member)
            assert (seen[:, turn] == turn + 1).all()

    together(3, work, lambda: None)
    assert (gates[::LINE] == 200).all()


def test_arithmetic_is_unthreaded_meanwhile_and_threaded_again() -> None:
    threads = torch.get_num_threads()
    counts: dict[int, int] = {}
    together(2, lambda m: counts.update({m: torch.get_num_threads()}), lambda: None)
    assert counts == {0: 1, 1: 1}
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("culprit", [0, 1])
def test_an_error_leaves_nobody_at_a_gate(culprit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = toy.data()
    model = build(Model(hidden=(1024, 1024)), toy.INPUTS, toy.CLASSES, generator(0, "init"))
    layers = linear_layers(model)
    assert layers is not None
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        one = CompiledSGD(layers, 0.1)
        one.steps(data.train_x, data.train_y, 1)
        take = Loop.take

        def stopped(self: Loop, member: int, *rest: object, **more: object) -> None:
            if member == culprit:
                raise KeyboardInterrupt
            take(self, member, *rest, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(Loop, "take", stopped)
        with pytest.raises(KeyboardInterrupt):
            one.steps(data.train_x, data.train_y, 1)
    finally:
        torch.set_num_threads(threads)
