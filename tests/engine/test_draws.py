"""Named generators: independent of one another and of what was drawn before."""

import torch

from batchlab.engine.draws import epoch_order, generator, trial_draw


def test_the_same_name_gives_the_same_draws() -> None:
    a = torch.randn(5, generator=generator(3, "init"))
    assert torch.equal(a, torch.randn(5, generator=generator(3, "init")))
    for other in (generator(4, "init"), generator(3, "order"), generator(3, "init", 1)):
        assert not torch.equal(a, torch.randn(5, generator=other))


def test_every_epoch_visits_every_sample_in_another_order() -> None:
    orders = [epoch_order(0, epoch, 100) for epoch in range(3)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(100))
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[1], orders[2])


def test_orders_of_a_draw_share_its_samples() -> None:
    a, b, other = (
        trial_draw(0, 1, 0, 30, 100),
        trial_draw(0, 1, 1, 30, 100),
        trial_draw(0, 2, 0, 30, 100),
    )
    assert len(a.unique()) == 30
    assert torch.equal(a.sort().values, b.sort().values)
    assert not torch.equal(a, b)
    assert not torch.equal(a.sort().values, other.sort().values)


def test_draws_are_uniform() -> None:
    counts = torch.zeros(20)
    for draw in range(2000):
        counts[trial_draw(5, draw, 0, 5, 20)] += 1
    expected, sd = 500.0, (2000 * 0.25 * 0.75) ** 0.5
    assert ((counts - expected).abs() < 4.5 * sd).all()
