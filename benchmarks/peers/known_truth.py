"""The noise scale of one linear layer whose truth is known, as each package says it.

The loss is mean(x w) with x ~ N(mu, I) in 1,000 dimensions: an example's gradient is x, whatever
the weights, tr(Sigma) = 1,000 and |G|^2 = |mu|^2 = 1,000 / 2,048. 100 steps of 64 examples a seed,
in eight micro-batches. Whatever this environment has takes part.

    python benchmarks/peers/known_truth.py [--seeds N]
"""

import argparse
import logging
import warnings
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor, nn

TRUTH, DIMENSION, STEPS, BATCH, PARTS = 2048.0, 1000, 100, 64, 8


def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(DIMENSION, 1, bias=False)


def batches(seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        yield torch.randn(BATCH, DIMENSION, generator=generator) + TRUTH**-0.5


def batchlab(seed: int, *, micro_batches: bool) -> tuple[float, float, float]:
    """Estimate, low and high."""
    from batchlab.integrations.plain import NoiseScale
    from batchlab.integrations.sources import MicroBatches

    layer = model()
    watch = NoiseScale(layer)
    if micro_batches:
        watch._source.remove()
        watch._source = MicroBatches(layer)
    for x in batches(seed):
        for part in x.chunk(PARTS):
            (layer(part).mean() / PARTS).backward()
        watch.step()
        layer.zero_grad()
    scale = watch.compute().estimate.scale
    return scale.effect, scale.low, scale.high


def traintools(seed: int) -> tuple[float, float]:
    """Its last single-shot and its smoothed estimate."""
    from traintools.gradnoise import GradientAccumulationGNS

    layer = model()
    tracker = GradientAccumulationGNS(layer, micro_batch_size=BATCH // PARTS)
    told = None
    for k, x in enumerate(batches(seed)):
        for part in x.chunk(PARTS):
            layer(part).mean().backward()
            tracker.record_microbatch()
        told = tracker.compute(k)
        layer.zero_grad()
        tracker.reset_accumulation()
    assert told is not None
    return told.raw_gns, told.gns


def susceptibility(seed: int) -> tuple[float, bool]:
    """Its critical batch size from all examples' losses, and whether it calls it significant."""
    from batch_susceptibility import BatchSusceptibility

    layer = model()
    with torch.no_grad():
        losses = torch.cat([layer(x)[:, 0] for x in batches(seed)])
    found = BatchSusceptibility().feed(losses.tolist()).find_critical()
    return float(found.K_c), bool(found.is_significant)


def lightning(samples: int) -> int:
    """The size that its batch-size scaler leaves for a data set of so many samples."""
    import lightning.pytorch as pl
    from lightning.pytorch.tuner.tuning import Tuner

    class Module(pl.LightningModule):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.batch_size = model(), BATCH

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            told: Tensor = self.layer(batch[0]).mean()
            return told

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

        def train_dataloader(self) -> object:
            data = torch.utils.data.TensorDataset(torch.zeros(samples, DIMENSION))
            return torch.utils.data.DataLoader(data, batch_size=self.batch_size)

    module = Module()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    Tuner(trainer).scale_batch_size(module, mode="power")
    return module.batch_size


def spread(name: str, values: list[float], more: str = "") -> None:
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9], method="nearest")
    print(f"{name:<44}{middle:9.0f}  [{low:.0f}, {high:.0f}]  {more}", flush=True)


def main() -> None:
    """Print a row for each that is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    seeds = range(parser.parse_args().seeds)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print(f"truth {TRUTH:.0f}; {len(seeds)} seeds{'':<20}{'median':>12}  [p10, p90]")
    if find_spec("batchlab"):
        for name, parts in (("batchlab, per example", False), ("batchlab, micro-batches", True)):
            told = [batchlab(s, micro_batches=parts) for s in seeds]
            covered = sum(low <= TRUTH <= high for _, low, high in told)
            bounded = sum(np.isfinite(high) for *_, high in told)
            more = (
                f"interval covers the truth {covered}, is bounded {bounded} of {len(seeds)} times"
            )
            spread(name, [effect for effect, *_ in told], more)
    if find_spec("traintools"):
        both = [traintools(s) for s in seeds]
        spread("traintools, single shot", [raw for raw, _ in both], "no interval")
        spread("traintools, smoothed", [smooth for _, smooth in both], "no interval")
    if find_spec("batch_susceptibility"):
        found = [susceptibility(s) for s in seeds]
        sure = sum(significant for _, significant in found)
        more = f"significant {sure} of {len(seeds)} times"
        spread("batch-susceptibility", [size for size, _ in found], more)
    if find_spec("lightning") and not find_spec("batchlab"):
        for samples in (1000, 60_000):
            size = lightning(samples)
            print(f"Lightning's scaler, {samples:,} samples of the same layer: {size}")


if __name__ == "__main__":
    main()
