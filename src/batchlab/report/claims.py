"""Findings as the page shows them: those of one claim together, whatever the reading."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from batchlab.record import Finding, Verdict

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

# How a claim stands under one reading of the article.
Standing = Verdict | Literal["cannot"]
STANDINGS: Mapping[Standing, str] = {
    "supported": "holds",
    "refuted": "does not hold",
    "cannot": "can\N{RIGHT SINGLE QUOTATION MARK}t hold",
    "inconclusive": "undecided",
}


def standing(finding: Finding) -> Standing:
    """The verdict, or `cannot` where an identity rules the claim out.

    A claim that was found to hold in spite of its identity shows as measured: one of the two is
    wrong, and the page must not hide it.
    """
    return "cannot" if finding.cannot and finding.verdict != "supported" else finding.verdict


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim under all its readings; the first is the headline."""

    findings: tuple[Finding, ...]

    @property
    def headline(self) -> Finding:
        """The finding that stands for the claim."""
        return self.findings[0]

    @property
    def name(self) -> str:
        """The claim in a few words: those of its id."""
        return self.headline.id.replace("-", " ").capitalize()

    @property
    def read_variously(self) -> bool:
        """Whether it is tested under more than one reading."""
        return len({f.convention for f in self.findings if f.convention}) > 1

    @property
    def partly(self) -> bool:
        """Whether it holds under the first reading and not under all."""
        return self.headline.verdict == "supported" and len(self.tally) > 1

    @property
    def tally(self) -> dict[Standing, int]:
        """Under how many readings it stands in which way."""
        counted = Counter(standing(finding) for finding in self.findings)
        return {way: counted[way] for way in STANDINGS if counted[way]}

    @property
    def clauses(self) -> list[tuple[Standing, str, list[Finding]]]:
        """Its findings by how they stand and, where one rules the claim out, by identity."""
        grouped: dict[tuple[Standing, str], list[Finding]] = {}
        for finding in self.findings:
            way = standing(finding)
            why = finding.cannot if way == "cannot" and finding.cannot else ""
            grouped.setdefault((way, why), []).append(finding)
        ways = list(STANDINGS)
        return sorted(
            ((way, why, found) for (way, why), found in grouped.items()),
            key=lambda clause: ways.index(clause[0]),
        )


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


def columns(of: Iterable[Claim]) -> dict[str, dict[str, str]]:
    """The readings of the claims that have several: by group, and in it by what heads its column.

    Where all are of two words, such as `sum-stepping`, the second is the group, and the first
    words come in the same order in every group; else the one group has no name. Groups and words
    come in the order in which they first occur.
    """
    found = (f.convention for claim in of if claim.read_variously for f in claim.findings)
    readings = dict.fromkeys(name for name in found if name)
    pairs = [name.split("-") for name in readings]
    if any(len(pair) != 2 for pair in pairs):
        return {"": {name: name for name in readings}}
    firsts = dict.fromkeys(first for first, _ in pairs)
    return {
        group: {first: name for first in firsts if (name := f"{first}-{group}") in readings}
        for _, group in pairs
    }
