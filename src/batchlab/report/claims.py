"""Findings as the page shows them: those of one claim together, whatever the reading."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from batchlab.record import Finding, Verdict

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim under all its readings; the first is the headline."""

    findings: tuple[Finding, ...]

    @property
    def headline(self) -> Finding:
        """The finding that stands for the claim."""
        return self.findings[0]

    @property
    def supported(self) -> int:
        """The number of readings it holds under."""
        return sum(finding.verdict == "supported" for finding in self.findings)


def claims(findings: Iterable[Finding]) -> tuple[Claim, ...]:
    """The findings grouped by id, in the order in which the ids first occur."""
    grouped: dict[str, list[Finding]] = {}
    for finding in findings:
        grouped.setdefault(finding.id, []).append(finding)
    return tuple(Claim(tuple(group)) for group in grouped.values())


def counts(of: Iterable[Claim]) -> dict[Verdict, int]:
    """How many headlines have each verdict; the verdicts nobody has are there too."""
    counted = Counter(claim.headline.verdict for claim in of)
    return {verdict: counted[verdict] for verdict in VERDICTS}


def readings(of: Iterable[Claim]) -> tuple[str, ...]:
    """The conventions of the claims that have several, in the order in which they first occur."""
    names = (f.convention for claim in of if len(claim.findings) > 1 for f in claim.findings)
    return tuple(dict.fromkeys(name for name in names if name))
