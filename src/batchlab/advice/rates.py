"""The learning rate that goes with a batch size: the rule for the user's optimizer."""

from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, Literal

from batchlab.analysis import learning_rate
from batchlab.analysis.intervals import Interval
from batchlab.engine.settings import Settings
from batchlab.workloads.optimizers import adaptive, base_rate
from batchlab.workloads.prepared import Prepared

Name = Literal["linear", "square root"]


@dataclass(frozen=True, slots=True)
class Rule:
    """From the rate at `size` to that at others; `beta2` where the optimizer has one."""

    name: Name
    rate: float
    size: int
    beta2: float | None
    noise: Interval

    @classmethod
    def of(cls, workload: Prepared, noise: Interval) -> "Rule":
        """Square root for optimizers that divide by a gradient's size, linear for all others."""
        given = workload.given.optimizer
        group = given.param_groups[0]
        beta2 = float(group["betas"][1]) if "betas" in group else None
        name: Name = "square root" if adaptive(given) else "linear"
        return cls(name, base_rate(given), workload.batch_size, beta2, noise)

    def tuned(self, multiplier: float, noise: Interval) -> "Rule":
        """From a better rate at the present size, and a better noise scale."""
        return Rule(self.name, self.rate * multiplier, self.size, self.beta2, noise)

    def at(self, size: float) -> Interval:
        """The rate at a batch size, over the noise scale's interval where the rule has one."""
        if self.name == "linear":
            noise = self.noise
            if not isfinite(noise.effect):
                noise = Interval(inf, noise.low, inf, noise.n)
            return learning_rate.sgd(self.rate, self.size, size, noise)
        beta2 = 0.5 if self.beta2 is None else self.beta2
        rate = learning_rate.adam(self.rate, beta2, self.size, size).rate
        return Interval(rate, rate, rate, 1)

    def options(self, size: float) -> dict[str, float]:
        """What else moves: beta2, so that its half-life stays as many samples."""
        if self.beta2 is None or not 0 < self.beta2 < 1:
            return {}
        return {"beta2": learning_rate.adam(self.rate, self.beta2, self.size, size).beta2}

    def settings(self, size: int, multiplier: float, micro: int | None) -> Settings:
        """A run's settings at a size, with `multiplier` times the rule's rate."""
        return Settings(size, self.at(size).effect * multiplier, micro, self.options(size))

    def words(self) -> str:
        """The rule as a sentence."""
        if self.name == "linear":
            return (
                f"rate {self.rate:.3g} at {self.size}, times (1 + N/{self.size}) / (1 + N/B) at B "
                f"with N = {self.noise.effect:.3g}: linear below N, level above"
            )
        told = f"rate {self.rate:.3g} at {self.size}, times the square root of B/{self.size}"
        if self.beta2 is None:
            return told
        return f"{told}; beta2 = {self.beta2:g}^(B/{self.size}), beta1 as it is"

    def json(self, low: float, best: float, high: float) -> dict[str, Any]:
        """In words, and as numbers at the three sizes."""
        return {
            "words": self.words(),
            "rates": {
                f"{size:g}": {"learning_rate": self.at(size).effect, **self.options(size)}
                for size in (low, best, high)
            },
        }
