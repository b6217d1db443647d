"""A character-level transformer with AdamW on documentation of Python's standard library.

The texts are docstrings that every Python has; no network, and the same split every time on one
version of Python. Shapes: N windows, T characters, C of the model's width.
"""

from functools import lru_cache
from importlib import import_module

import torch
from torch import nn
from torch.nn import functional as F

from batchlab import UserWorkload

MODULES: tuple[str, ...] = (
    "argparse",
    "collections",
    "datetime",
    "decimal",
    "difflib",
    "doctest",
    "enum",
    "heapq",
    "inspect",
    "itertools",
    "json",
    "logging",
    "math",
    "os",
    "pathlib",
    "pickle",
    "random",
    "re",
    "shutil",
    "socket",
    "statistics",
    "string",
    "subprocess",
    "tarfile",
    "threading",
)
LENGTH, WIDTH, HEADS, LAYERS = 32, 48, 4, 2
CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))  # any other is left out
TRAIN, VALIDATION = 4_096, 256  # windows


def documentation() -> str:
    """The docstrings of modules and of what they define, each once, in a fixed order."""
    texts: dict[str, None] = {}
    for name in MODULES:
        module = import_module(name)
        members = [vars(module)[key] for key in sorted(vars(module))]
        inner = [vars(m)[key] for m in members if isinstance(m, type) for key in sorted(vars(m))]
        for owner in (module, *members, *inner):
            text = getattr(owner, "__doc__", None)
            if isinstance(text, str) and len(text) > LENGTH:
                texts[text] = None
    return "\n".join(texts)


@lru_cache(maxsize=1)
def windows() -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of T + 1 characters that do not overlap, of training and of validation texts."""
    number = {character: index for index, character in enumerate(CHARACTERS)}
    codes = torch.tensor([number[c] for c in documentation() if c in number])
    count = len(codes) // (LENGTH + 1)
    all_NT = codes[: count * (LENGTH + 1)].view(count, LENGTH + 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    chosen_NT = all_NT[order[: TRAIN + VALIDATION]]
    return chosen_NT[VALIDATION:], chosen_NT[:VALIDATION]


class Transformer(nn.Module):
    """Pre-norm, causal, without dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(CHARACTERS), WIDTH)
        self.place_TC = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(LAYERS)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, len(CHARACTERS))

    def forward(self, x_NT: torch.Tensor) -> torch.Tensor:
        mask_TT = nn.Transformer.generate_square_subsequent_mask(x_NT.shape[1], x_NT.device)
        h_NTC = self.embed(x_NT) + self.place_TC
        for layer in self.layers:
            h_NTC = layer(h_NTC, src_mask=mask_TT, is_causal=True)
        logits: torch.Tensor = self.out(self.norm(h_NTC))
        return logits


def next_character(logits_NTK: torch.Tensor, y_NT: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits_NTK.flatten(0, 1), y_NT.flatten())


def factory() -> UserWorkload:
    train_NT, validation_NT = windows()
    model = Transformer()
    return UserWorkload(
        model=model,
        train=(train_NT[:, :-1], train_NT[:, 1:]),
        validation=(validation_NT[:, :-1], validation_NT[:, 1:]),
        loss=next_character,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        batch_size=16,
        target=2.4,
        name="language",
    )
