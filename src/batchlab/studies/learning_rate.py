"""Does a higher learning rate recover what a larger batch lost?"""

from batchlab.analysis.intervals import Condition
from batchlab.record import Finding, Panel, Table
from batchlab.spec import Protocol
from batchlab.studies import article
from batchlab.studies.base import EPOCHS, Study, article_table, curve_panels, recovers
from batchlab.studies.results import Arm, Results, arm, phase


class LearningRate(Study):
    """The small batch, the large one, and the large one at a higher rate."""

    id = "learning-rate"
    title = "Effect of learning rate"
    question = "Does a higher learning rate give a large batch the small batch's accuracy?"

    def arms(self, protocol: Protocol) -> dict[str, Arm]:
        """Two references and the remedy."""
        high = phase(protocol, protocol.large, rate=protocol.high_learning_rate)
        return {
            "small": arm(phase(protocol, protocol.small)),
            "large": arm(phase(protocol, protocol.large)),
            "high": arm(high),
        }

    def findings(self, results: Results) -> list[Finding]:
        """Recovered: within one point of the small batch, and above the large one."""
        arms = self.arms(results.protocol)
        small, large, high = arms["small"], arms["large"], arms["high"]
        gain = results.difference(high, large, "test_accuracy")
        return [
            self.finding(
                results,
                "learning-rate-recovers",
                [
                    recovers(results, high, small),
                    Condition(f"{high.label} minus {large.label} is above 0", gain, above=0),
                ],
                measure=f"test accuracy, {high.label} minus {small.label}",
                article="98% both, from 95 to 96% at the low rate",
            )
        ]

    def panels(self, results: Results) -> list[Panel]:
        """The curves of the three runs."""
        arms = list(self.arms(results.protocol).values())
        return curve_panels(results, arms, self.id, EPOCHS, ordered=False)

    def tables(self, results: Results) -> list[Table]:
        """The final numbers."""
        arms = self.arms(results.protocol)
        said = {
            arms["small"]: article.SMALL,
            arms["large"]: article.LARGE,
            arms["high"]: article.LARGE_HIGH_RATE,
        }
        return [article_table(results, said)]
