"""The noise scale along a run: per-example gradient norms where layers allow, chunks elsewhere.

Adam and its kin are measured in their own metric (`probes.preconditioner`), for which single
examples' norms are not enough: a batch is then passed in chunks. Batch norm couples a batch's
samples, so that a chunk is no part of it: the step's batch is then compared with another one, which
is passed beside the training. Parameters that the optimizer does not have do not count.

Shapes: P parameters, K chunks.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from batchlab.engine.draws import derived, epoch_order
from batchlab.engine.general import GeneralRun, Micro, accumulated
from batchlab.probes.noise_scale import NoiseStatistics
from batchlab.probes.parts import Parts, parts
from batchlab.probes.per_example import PerExampleNorms, unsupported
from batchlab.probes.preconditioner import ADAPTIVE, NoStepYet, metric_roots
from batchlab.record import NoiseSeries
from batchlab.spec import UserError, batch_slices
from batchlab.workloads.objective import shares
from batchlab.workloads.seeding import forked, reseed

# Steps: norms come with the gradients, chunks are passes more, another batch is as much work again.
MOST, MOST_IN_CHUNKS, MOST_IN_PAIRS = 4096, 480, 240
CHUNKS = 8  # of a batch; with fewer, tau is poor, and with more the passes get slow

Gradients = Sequence[torch.Tensor | None]


class NoiseAlong:
    """Hooks on a run. `begin` before each stretch says whether its steps are measured.

    `kind`: "per-example", "chunks" or "pairs of batches", the last two also "preconditioned".
    `steps` are those measured, `beside` the samples passed for it that were not trained on.
    """

    def __init__(self, run: GeneralRun) -> None:
        """Raises `UserError` where a batch has fewer than two examples."""
        size = run.settings.batch_size
        if size < 2:
            raise UserError(
                "batch_size: got 1; must be 2 or more, as a noise scale is the spread of gradients "
                "within a batch"
            )
        self._run = run
        self._micro_batch = run.settings.micro_batch  # of steps that are not measured
        self._preconditioned = isinstance(run.optimizer, ADAPTIVE)
        stepped = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
        names = {id(p): name for name, p in run.model.named_parameters()}
        self._places = {
            names[id(p)]: place for place, p in enumerate(run.parameters) if id(p) in stepped
        }
        self._names = tuple(self._places)
        self._pairs = bool(run.workload.batch_norm)
        whole = (self._micro_batch or size) >= size
        self._norms: PerExampleNorms | None = None
        if whole and not self._preconditioned and not unsupported(run.model):
            self._norms = PerExampleNorms(run.model)
            self._norms.active = False
            self._names = tuple(name for name in self._norms.names if name in self._places)
        self._statistics = NoiseStatistics(self._names, len(run.workload.train))
        self._measured = False
        self._roots: dict[str, torch.Tensor] = {}
        self._own: list[torch.Tensor] = []  # (P) of each chunk
        self._sizes: list[int] = []
        self._shares: list[Any] = []
        self.steps: list[int] = []
        self.beside = 0
        run.on_step = self._step

    @property
    def kind(self) -> str:
        """How it is measured."""
        if self._norms is not None:
            return "per-example"
        told = "pairs of batches" if self._pairs else "chunks"
        return f"preconditioned {told}" if self._preconditioned else told

    @property
    def most(self) -> int:
        """Steps of a run that are worth measuring, whatever its length."""
        if self._norms is not None:
            return MOST
        return MOST_IN_PAIRS if self._pairs else MOST_IN_CHUNKS

    def begin(self, measured: bool) -> None:
        """Whether the steps that follow are measured."""
        self._measured = measured
        if self._norms is not None:
            self._norms.active = measured
            return
        if self._pairs:
            return
        run = self._run
        size = run.settings.batch_size
        chunk = -(-size // CHUNKS)
        micro = min(chunk, self._micro_batch or chunk) if measured else self._micro_batch
        run.change(replace(run.settings, micro_batch=micro))
        run.on_micro = self._micro if measured else None

    def series(self) -> dict[str, NoiseSeries]:
        """Of each parameter and of `all`; empty where no step was measured."""
        return self._statistics.compute() if self.steps else {}

    def end(self) -> None:
        """Take the hooks off."""
        if self._norms is not None:
            self._norms.remove()
        self._run.on_step = self._run.on_micro = None

    def _step(self, run: GeneralRun) -> None:
        if not self._measured:
            return
        if self._norms is not None:
            taken = self._of_examples(self._norms)
        elif self._pairs:
            taken = self._of_pair()
        else:
            taken = self._of_chunks()
        if taken is not None:
            self._statistics.update(taken)
            self.steps.append(run.place.step)

    def _of_examples(self, norms: PerExampleNorms) -> Parts | None:
        if sum(norms.sizes) == 1:  # a pass's last batch
            norms.discard()
            return None
        try:
            taken = norms.take()
        except UserError:  # what only a pass can show
            norms.remove()
            self._norms = None
            self._statistics = NoiseStatistics(self._names, len(self._run.workload.train))
            self.steps.clear()
            self.begin(True)
            return None
        if len(self._names) == len(norms.names):
            return taken
        own = [k for k, name in enumerate(norms.names) if name in self._places]
        return taken._replace(norms=taken.norms_2P[:, own])

    def _of_chunks(self) -> Parts | None:
        weights = [float(share) for share in self._shares]
        there = [k for k, weight in enumerate(weights) if weight > 0]  # else no label in it counts
        taken = None
        if len(there) > 1:
            whole_P = self._norm([p.grad for p in self._run.parameters])
            own_KP = torch.stack([self._own[k] for k in there])
            sizes, weights = [self._sizes[k] for k in there], [weights[k] for k in there]
            taken = parts(own_KP, whole_P, sizes, weights)
        self._own, self._sizes, self._shares, self._roots = [], [], [], {}
        return taken

    def _of_pair(self) -> Parts | None:
        run = self._run
        if not self._know_metric():
            return None
        own = [p.grad for p in run.parameters]
        other = _of_another_batch(run)
        size = run.settings.batch_size
        self.beside += size
        mean = [
            accumulated(accumulated(None, a, 0.5), b, 0.5) for a, b in zip(own, other, strict=True)
        ]
        own_2P = torch.stack([self._norm(own), self._norm(other)])
        return parts(own_2P, self._norm(mean), [size, size])

    def _micro(self, run: GeneralRun, micro: Micro) -> None:  # noqa: ARG002
        if self._own or self._know_metric():
            self._own.append(self._norm(micro.gradients))
            self._sizes.append(micro.samples)
            self._shares.append(micro.share)

    def _know_metric(self) -> bool:
        """Read the optimizer's metric, if it is measured in one; False where it has none yet."""
        if self._preconditioned:
            try:
                self._roots = metric_roots(self._run.model, self._run.optimizer)
            except NoStepYet:
                return False
        return True

    def _norm(self, gradients: Gradients) -> torch.Tensor:
        """Norms (P), in the optimizer's metric; of a parameter that no gradient reached, 0."""
        zero = torch.zeros((), device=self._run.workload.device)
        norms = []
        with torch.no_grad():
            for name in self._names:
                g = gradients[self._places[name]]
                if g is not None and name in self._roots:
                    g = g * self._roots[name]
                norms.append(zero if g is None else torch.linalg.vector_norm(g.float()))
        return torch.stack(norms)


def _of_another_batch(run: GeneralRun) -> list[torch.Tensor | None]:
    """The next batch's gradient at the run's weights, in the order of `parameters`.

    The two are one draw without replacement. It is passed as the run does it, in its turns; the
    run's draws and buffers stay as they are.
    """
    workload, here = run.workload, run.place
    size, train, objective = run.settings.batch_size, workload.train, workload.objective
    order = epoch_order(run.seed, here.epoch, len(train))
    rows = order.roll(-here.cursor - size)[:size].to(train.device)
    buffers = [(b, b.detach().clone()) for b in run.model.buffers()]
    total: list[torch.Tensor | None] = [None] * len(run.parameters)
    with forked(workload.device):
        reseed(derived(run.seed, "noise scale", here.step), workload.device)
        cut = list(batch_slices(size, run.settings.micro_batch or size))
        batches = [train.batch(rows[part]) for part in cut]
        weights: list[Any] = [
            objective.share(batch, part.stop - part.start)
            for batch, part in zip(batches, cut, strict=True)
        ]
        for batch, share in zip(batches, shares(weights), strict=True):
            loss = objective(run.model, batch)
            own = torch.autograd.grad(loss, run.parameters, allow_unused=True)
            total = [accumulated(t, g, share) for t, g in zip(total, own, strict=True)]
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)
    return total
