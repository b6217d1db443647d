"""A real Hugging Face trainer on a tiny GPT-2 against the plain loop, on the same data."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchlab import NoiseScale
from tests.integrations.test_plain import hooks

pytestmark = pytest.mark.filterwarnings("ignore")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from batchlab.integrations.hf import NoiseScaleCallback  # noqa: E402

TOKENS = torch.randint(32, (48, 8), generator=torch.Generator().manual_seed(0))


def gpt() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=32,
        n_positions=8,
        n_embd=16,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model: nn.Module = transformers.GPT2LMHeadModel(config)
    return model


class Bag(nn.Module):
    """Per-example norms are there for all of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.norm, self.head = nn.Embedding(32, 8), nn.LayerNorm(8), nn.Linear(8, 32)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        z = self.head(self.norm(self.table(input_ids).mean(1)))
        return {"loss": F.cross_entropy(z, labels[:, 0])}


def fit(model: nn.Module, where: Path, micro_batches: int, **options: Any) -> Any:
    callback = NoiseScaleCallback()
    arguments = transformers.TrainingArguments(
        output_dir=str(where),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=micro_batches,
        num_train_epochs=1,
        learning_rate=0.1,
        optim="sgd",
        lr_scheduler_type="constant",
        logging_steps=2,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        **options,
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"input_ids": t, "labels": t} for t in TOKENS],
    )
    callback.add_to(trainer)
    trainer.train()
    return callback, trainer


def plain(model: nn.Module, micro_batches: int, clip: float = 1.0) -> NoiseScale:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = NoiseScale(model, optimizer)
    for k, x in enumerate(TOKENS.split(4)):
        if isinstance(model, Bag):
            loss = model(input_ids=x, labels=x)["loss"] / micro_batches
        else:  # the trainer divides by all labels, the first ones too, which nothing predicts
            labels = x.numel() * micro_batches
            loss = model(input_ids=x, labels=x, num_items_in_batch=labels)["loss"]
        loss.backward()
        if (k + 1) % micro_batches == 0:
            watch.step()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return watch


@pytest.mark.parametrize(
    ("make", "micro_batches", "clip"),
    [(gpt, 2, 1.0), (gpt, 3, 0.1), (Bag, 1, 0.1), (Bag, 3, 1.0)],
)
def test_the_plain_loops_numbers(
    make: Any, micro_batches: int, clip: float, tmp_path: Path
) -> None:
    model = make()
    twin = copy.deepcopy(model)
    callback, trainer = fit(model, tmp_path, micro_batches, max_grad_norm=clip)
    watch = plain(twin, micro_batches, clip)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    told, expected = callback.compute(), watch.compute()
    assert told.estimate.steps == expected.estimate.steps == 12 // micro_batches
    assert told.told == expected.told
    assert told.told.startswith("per-example" if make is Bag else "micro-batches")
    assert told.estimate.trace.effect == pytest.approx(expected.estimate.trace.effect, rel=1e-4)
    assert told.estimate.square.effect == pytest.approx(expected.estimate.square.effect, rel=1e-3)
    assert hooks(model) == 0
    logged = [row for row in trainer.state.log_history if "loss" in row]
    assert logged
    assert all(math.isfinite(row["noise_scale_low"]) for row in logged)


def test_bf16_autocast(tmp_path: Path) -> None:
    full, _ = fit(Bag(), tmp_path, 2)
    mixed, _ = fit(Bag(), tmp_path, 2, bf16=True)
    assert mixed.compute().estimate.trace.effect == pytest.approx(
        full.compute().estimate.trace.effect, rel=0.05
    )


def test_a_training_that_was_broken_off_leaves_no_hooks(tmp_path: Path) -> None:
    model = Bag()
    callback, trainer = fit(model, tmp_path, 1)
    state = (trainer.args, trainer.state, trainer.control)
    for _ in range(2):
        callback.on_train_begin(*state, model=model, optimizer=trainer.optimizer)
    callback.on_train_end(*state)
    assert hooks(model) == 0
