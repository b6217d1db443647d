"""Commands that look at a store: `runs`, `findings`, and `store`: is it as it was written?"""

from pathlib import Path

import typer

from batchlab.options import CheckpointsAt, Json, StoreThere
from batchlab.printing import say_findings, say_json, say_rows
from batchlab.store.address import given_address

MOST_ROWS = 200  # of a table for people

app = typer.Typer(help="Check a store, or repair it.", no_args_is_help=True)


@app.command()
def check(
    store: StoreThere = Path("out/store"),
    checkpoints: CheckpointsAt = None,
    as_json: Json = False,
) -> None:
    """Name everything in the store that is damaged; exit status 1 where anything is."""
    from batchlab.store.check import check as look

    found = look(store, given_address(checkpoints))
    if as_json:
        say_json({"store": str(store), "damage": [damage._asdict() for damage in found]})
    else:
        for damage in found:
            print(damage)
        print(f"store {store}: {f'{len(found)} damaged' if found else 'all as it was written'}")
    if found:
        raise typer.Exit(1)


@app.command()
def repair(
    store: StoreThere = Path("out/store"),
    checkpoints: CheckpointsAt = None,
    as_json: Json = False,
) -> None:
    """Drop what is damaged, and only that; the damaged files stay in the store's `damaged`."""
    from batchlab.store.repair import repair as mend

    done = mend(store, given_address(checkpoints))
    copy = None if done.copy is None else str(done.copy)
    if as_json:
        dropped = [damage._asdict() for damage in done.dropped]
        say_json({"store": str(store), "runs": done.runs, "dropped": dropped, "copy": copy})
        return
    for damage in done.dropped:
        print(f"dropped {damage}")
    kept = f"; what was damaged is in {copy}" if copy else ", nothing was damaged"
    print(f"store {store}: {done.runs} runs{kept}")


def runs(store: StoreThere = Path("out/store"), as_json: Json = False) -> None:
    """What the store holds, an object a run."""
    from batchlab import listing
    from batchlab.store.database import Store

    with Store(store, create=False) as there:
        if as_json:
            print(f"[{', '.join(listing.texts(there))}]")
            return
        rows = listing.describe(there)
    shown = ["workload", "schedule", "seed", "status", "test_accuracy", "W", "seconds"]
    frame = listing.runs_frame(rows[-MOST_ROWS:])
    say_rows([{name: row[name] for name in shown} for _, row in frame.iterrows()])
    if len(rows) > MOST_ROWS:
        print(f"the last {MOST_ROWS} of {len(rows):,} runs; --json tells all")


def findings(store: StoreThere = Path("out/store"), as_json: Json = False) -> None:
    """What the store's runs say of the article's claims, an object a finding."""
    from batchlab import archive
    from batchlab.store.database import Store

    with Store(store, create=False) as there:
        told = [finding.json() for finding in archive.findings(there)]
    if as_json:
        say_json(told)
    else:
        say_findings(told)
