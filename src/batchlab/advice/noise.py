"""The noise scale along a run: per-example gradient norms where layers allow, chunks elsewhere.

Adam and its kin are measured in their own metric (`probes.preconditioner`), for which single
examples' norms are not enough: a batch is then passed in chunks.

Shapes: P parameters, K chunks.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from batchlab.engine.general import GeneralRun, Micro
from batchlab.probes.noise_scale import NoiseStatistics
from batchlab.probes.parts import parts
from batchlab.probes.per_example import PerExampleNorms, unsupported
from batchlab.probes.preconditioner import ADAPTIVE, metric_roots
from batchlab.record import NoiseSeries
from batchlab.spec import UserError

MOST, MOST_IN_CHUNKS = 4096, 480  # steps: norms come with the gradients, chunks are passes more
CHUNKS = 8  # of a batch; with fewer, tau is poor, and with more the passes get slow


class NoiseAlong:
    """Hooks on a run. `begin` before each stretch says whether its steps are measured.

    `kind`: "per-example", "chunks" or "preconditioned chunks". `steps` are those measured.
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
        whole = (self._micro_batch or size) >= size
        self._preconditioned = isinstance(run.optimizer, ADAPTIVE)
        names = {id(p): name for name, p in run.model.named_parameters()}
        self._names = tuple(names[id(p)] for p in run.parameters)
        self._norms: PerExampleNorms | None = None
        if whole and not self._preconditioned and not unsupported(run.model):
            self._norms = PerExampleNorms(run.model)
            self._norms.active = False
        self._statistics = NoiseStatistics(
            self._norms.names if self._norms else self._names, len(run.workload.train)
        )
        self._roots: dict[str, torch.Tensor] = {}
        self._own: list[torch.Tensor] = []  # (P) of each chunk
        self._sizes: list[int] = []
        self.steps: list[int] = []
        run.on_step = self._step

    @property
    def kind(self) -> str:
        """How it is measured."""
        if self._norms is not None:
            return "per-example"
        return "preconditioned chunks" if self._preconditioned else "chunks"

    @property
    def most(self) -> int:
        """Steps of a run that are worth measuring, whatever its length."""
        return MOST if self._norms is not None else MOST_IN_CHUNKS

    def begin(self, measured: bool) -> None:
        """Whether the steps that follow are measured."""
        if self._norms is not None:
            self._norms.active = measured
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
        if self._norms is not None:
            if not self._norms.active:
                return
            try:
                taken = self._norms.take()
            except UserError:  # what only a pass can show
                self._norms.remove()
                self._norms = None
                self._statistics = NoiseStatistics(self._names, len(run.workload.train))
                self.steps.clear()
                self.begin(True)
                return
        elif len(self._own) > 1:
            whole = [p.grad for p in self._run.parameters]
            taken = parts(torch.stack(self._own), self._norm(whole), self._sizes)
            self._forget()
        else:
            self._forget()
            return
        self._statistics.update(taken)
        self.steps.append(run.place.step)

    def _micro(self, run: GeneralRun, micro: Micro) -> None:
        if self._preconditioned and not self._own:
            try:
                self._roots = metric_roots(run.model, run.optimizer)
            except UserError:  # no step yet
                return
        self._own.append(self._norm(micro.gradients))
        self._sizes.append(micro.samples)

    def _forget(self) -> None:
        self._own, self._sizes, self._roots = [], [], {}

    def _norm(self, gradients: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Norms (P), in the optimizer's metric; of a parameter that no gradient reached, 0."""
        zero = torch.zeros((), device=self._run.workload.device)
        norms = []
        with torch.no_grad():
            for name, g in zip(self._names, gradients, strict=True):
                if g is not None and name in self._roots:
                    g = g * self._roots[name]
                norms.append(zero if g is None else torch.linalg.vector_norm(g.float()))
        return torch.stack(norms)
