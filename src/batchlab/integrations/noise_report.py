"""What a watched noise scale says: a number with its interval, or that the data don't decide."""

from collections.abc import Mapping
from dataclasses import dataclass

from batchlab.analysis.noise_scale import NoiseScale, Undecided
from batchlab.record import ALL, Reading


@dataclass(frozen=True, slots=True)
class NoiseReport:
    """`estimate` is of the whole model, `layers` of its parameters, where they were asked for."""

    estimate: NoiseScale
    layers: Mapping[str, NoiseScale]
    told: str  # what it was measured from
    skipped: int  # steps that could not tell
    why: str = ""  # the last of them could not, where it is known

    @property
    def decided(self) -> bool:
        """Whether the noise scale is bounded."""
        return self.estimate.decided

    def readings(self) -> list[Reading]:
        """`noise_scale`, `noise_scale_low`, `noise_scale_high` and what they are made of.

        Where the data do not bound it there is the lower end alone.
        """
        rows = []
        for layer, one in {ALL: self.estimate, **self.layers}.items():
            if one.decided:
                rows.append(Reading("noise_scale", layer, one.scale.effect))
                rows.append(Reading("noise_scale_high", layer, float(one.scale.high)))
            rows.append(Reading("noise_scale_low", layer, float(one.scale.low)))
            rows.append(Reading("gradient_variance", layer, one.trace.effect))
            rows.append(Reading("gradient_square", layer, one.square.effect))
        return rows

    def __str__(self) -> str:
        lines = [_line("noise scale", self.estimate)]
        lines[0] += f"; {self.told}"
        if self.skipped:
            lines[0] += f"; {self.skipped} steps left out" + (f" ({self.why})" if self.why else "")
        return "\n".join(lines + [_line(f"  {name}", one) for name, one in self.layers.items()])


def _line(name: str, told: NoiseScale) -> str:
    if not told.decided:
        return f"{name}: can't tell: {Undecided(told)}"
    scale = told.scale
    return (
        f"{name} {scale.effect:.3g} examples, 95% interval [{scale.low:.3g}, {scale.high:.3g}], "
        f"{told.steps} steps"
    )
