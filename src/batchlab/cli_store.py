"""`batchlab store`: is a store as it was written, and what can be saved of one that is not."""

from pathlib import Path

import typer

from batchlab.options import Json, StoreThere
from batchlab.printing import say_json

app = typer.Typer(help="Check a store, or repair it.", no_args_is_help=True)


@app.command()
def check(store: StoreThere = Path("out/store"), as_json: Json = False) -> None:
    """Name everything in the store that is damaged; exit status 1 where anything is."""
    from batchlab.store.check import check as look

    found = look(store)
    if as_json:
        say_json({"store": str(store), "damage": [damage._asdict() for damage in found]})
    else:
        for damage in found:
            print(damage)
        print(f"store {store}: {f'{len(found)} damaged' if found else 'all as it was written'}")
    if found:
        raise typer.Exit(1)


@app.command()
def repair(store: StoreThere = Path("out/store"), as_json: Json = False) -> None:
    """Drop what is damaged, and only that; the damaged files stay in the store's `damaged`."""
    from batchlab.store.repair import repair as mend

    done = mend(store)
    copy = None if done.copy is None else str(done.copy)
    if as_json:
        dropped = [damage._asdict() for damage in done.dropped]
        say_json({"store": str(store), "runs": done.runs, "dropped": dropped, "copy": copy})
        return
    for damage in done.dropped:
        print(f"dropped {damage}")
    kept = f"; what was damaged is in {copy}" if copy else ", nothing was damaged"
    print(f"store {store}: {done.runs} runs{kept}")
