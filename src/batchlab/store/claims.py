"""Who is doing what: work that one process has claimed is left alone by the others.

A claim is a row of the store's database, made and given back in the transactions that decide
whether the work is still to be done. It ends with its owner (`owners.py`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from batchlab.spec import UserError
from batchlab.store.connection import Connection
from batchlab.store.owners import Owner


class Claim(NamedTuple):
    """Work that is under way."""

    name: str
    owner: str
    host: str
    work: Mapping[str, Any]  # what it is, in the claimant's words


class Claims:
    """What this process claims of the work on the store at `root`, and sees claimed by others."""

    def __init__(self, root: Path) -> None:
        self._connection = Connection(root, create_it=False)
        # Claims need not outlive a failure of power, as runs must: no waiting for the disk.
        self._connection.db.execute("PRAGMA synchronous = NORMAL")
        self._owner = Owner(root)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Give everything back."""
        # On a full disk, say, they stay: the claims of an owner that is gone are nobody's.
        with suppress(UserError), self._connection.transaction():
            sql = "DELETE FROM claim WHERE owner = ?"
            self._connection.db.execute(sql, (self._owner.name,))
        self._connection.db.close()
        self._owner.close()

    def take(
        self,
        work: Mapping[str, Mapping[str, Any]],
        clash: Callable[[Claim], bool],
        wanted: Callable[[], bool],
    ) -> list[Claim] | None:
        """Claim pieces of work by their names, all or none.

        Returns the claims of living processes that stand against it: those of the same names and
        those of which `clash` says so; empty where the work is now this process's. `None` where
        `wanted()`, asked while no one else can change the store, says that it is done already.
        """
        db = self._connection.db
        with self._connection.transaction():
            against = [c for c in self._others() if c.name in work or clash(c)]
            if against:
                return against
            if not wanted():
                return None
            rows = [
                (name, self._owner.name, self._owner.host, json.dumps(what))
                for name, what in work.items()
            ]
            db.executemany("INSERT OR REPLACE INTO claim VALUES (?, ?, ?, ?)", rows)
        return []

    def give_back(self, names: Sequence[str]) -> None:
        """Work that is done and stored, or given up."""
        with self._connection.transaction():
            sql = "DELETE FROM claim WHERE name = ? AND owner = ?"
            self._connection.db.executemany(sql, ((name, self._owner.name) for name in names))

    def held(self, claims: Sequence[Claim]) -> bool:
        """Whether all of these are still what a living process is at."""
        with self._connection.transaction():
            return set(claims_id(claims)) <= set(claims_id(self._others()))

    def _others(self) -> list[Claim]:
        """Of living processes; those of dead ones are dropped, within the caller's transaction."""
        db = self._connection.db
        sql = "SELECT name, owner, host, work FROM claim WHERE owner <> ?"
        claims = [
            Claim(name, owner, host, json.loads(work))
            for name, owner, host, work in db.execute(sql, (self._owner.name,))
        ]
        dead = set()
        for owner, host in {(claim.owner, claim.host) for claim in claims}:
            if self._owner.dead(owner, host):
                dead.add(owner)
                db.execute("DELETE FROM claim WHERE owner = ?", (owner,))
                self._owner.bury(owner)
        return [claim for claim in claims if claim.owner not in dead]


def claims_id(claims: Sequence[Claim]) -> list[tuple[str, str]]:
    """What tells claims apart."""
    return [(claim.name, claim.owner) for claim in claims]
