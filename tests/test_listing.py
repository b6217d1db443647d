"""The fast way to a run's JSON is the plain way."""

import json
from pathlib import Path

from batchlab.listing import describe, texts
from batchlab.record import Record
from batchlab.spec import Phase
from batchlab.store.database import Run, Store
from tests import toy

NAN, INF = float("nan"), float("inf")
RECORDS = [
    Record(0, 0.0, 0, "test_accuracy", "all", 0.1),
    Record(0, 0.0, 0, "train_loss", "all", 2.3),  # a number no more in the end
    Record(9, 1.0, 50, "test_accuracy", "all", 1 / 3),
    Record(9, 1.0, 50, "train_loss", "all", NAN),
    Record(9, 1.0, 50, "test_loss", "all", INF),
    Record(9, 1.0, 50, "distance", "weights", 1e-300),
    Record(9, 1.0, 50, "norm", "weights", 1e300),
    Record(9, 1.0, 50, "norm", "biases", 3.0),
    Record(9, 1.0, 50, "cosine", "weights", 0.5),
    Record(9, 1.0, 50, "cosine", '0."weight"\\', 0.25),
]


def test_both_ways(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for seed, (kind, status, records) in enumerate(
            [
                ("train", "finished", RECORDS),
                ("train", "finished", RECORDS[:1]),
                ("train", "finished", []),
                ("train", "diverged", RECORDS),
                ("trials", "finished", []),
            ]
        ):
            spec = toy.spec(Phase(batch_size=5, learning_rate=0.1, epochs=1), seed=seed)
            store.add(Run(spec.key, kind, spec.canonical(), status, 9, 1 / 3, "{}"), records)
        plain = describe(store)
        assert [json.loads(text) for text in texts(store)] == plain
        assert list(map(list, map(json.loads, texts(store)))) == list(map(list, plain))
        assert plain[0]["test_accuracy"] == 1 / 3
        assert plain[0]["train_loss"] is plain[0]["test_loss"] is None
        assert plain[0]["cos"] == {'0."weight"\\': 0.25}
        assert plain[3]["cos"] is plain[3]["test_accuracy"] is None
