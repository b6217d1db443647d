"""What of a plan this process may do: not what is done by now, nor what another process is at.

Two plans may cut one trajectory at different points. So a claim says what is trained from which
step on, and stands against every stretch that would train one of those steps.
"""

from collections.abc import Sequence

from pydantic import ValidationError

from batchlab.engine.data import train_samples
from batchlab.jobs import Site, under_way_key
from batchlab.plan import Piece, Stretch, shared_steps, trajectory
from batchlab.spec import TrainSpec
from batchlab.store.claims import Claim, Claims
from batchlab.store.database import Store


class Gate:
    """Claims jobs as they are begun. It must be made before the plan that it is for."""

    def __init__(self, store: Store, claims: Claims, site: Site) -> None:
        self._store, self._claims, self._site = store, claims, site
        self._stored = store.keys()
        self._stamps = site.checkpoints().stamps()
        self.refused = 0  # jobs
        self.against: list[Claim] = []  # what other processes are at

    def opens(self, job: Sequence[Piece]) -> bool:
        """Claim all pieces of a job, if nobody else has and they are still to be done."""

        def clash(claim: Claim) -> bool:
            return any(_overlap(piece, claim) for piece in job if isinstance(piece, Stretch))

        def wanted() -> bool:
            return not any(self._done(piece) for piece in job)

        work = {under_way_key(piece): _said(piece) for piece in job}
        against = self._claims.take(work, clash, wanted)
        # Checkpoints may be at the far end of a network: nobody waits for that in a transaction.
        if against == [] and any(self._kept(piece) for piece in job):
            self.closes(job)
            against = None
        if against == []:
            return True
        self.refused += 1
        self.against += against or []
        return False

    def closes(self, job: Sequence[Piece]) -> None:
        """Give a job back that is done."""
        self._claims.give_back([under_way_key(piece) for piece in job])

    def _done(self, piece: Piece) -> bool:
        """Whether another process has stored a run of the piece since the plan was made."""
        runs = piece.runs if isinstance(piece, Stretch) else (piece.spec,)
        return bool(self._store.has([run.key for run in runs if run.key not in self._stored]))

    def _kept(self, piece: Piece) -> bool:
        """Whether another process has kept the end of the piece since the plan was made."""
        if not isinstance(piece, Stretch) or not piece.keep:
            return False
        key = trajectory(piece.spec).key
        return self._site.checkpoints().stamp(key) != self._stamps.get(key)


def _said(piece: Piece) -> dict[str, object]:
    if not isinstance(piece, Stretch):
        return {}
    return {"trajectory": trajectory(piece.spec).model_dump(mode="json"), "first": piece.first}


def _overlap(stretch: Stretch, claim: Claim) -> bool:
    """Whether both train a step of one trajectory; what can't be read stands in the way."""
    if not claim.work:
        return False  # trials
    try:
        other = TrainSpec.model_validate(claim.work["trajectory"], strict=False)
        first = int(claim.work["first"])
    except (ValidationError, KeyError, TypeError, ValueError):
        return True
    shared = shared_steps(stretch.spec, other, train_samples(stretch.spec.workload))
    return shared > max(stretch.first, first)
