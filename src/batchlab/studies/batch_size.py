"""How does the batch size change what a model learns in the same epochs?"""

from batchlab.analysis.intervals import Condition
from batchlab.record import Finding, Panel, Table
from batchlab.spec import Protocol
from batchlab.studies import article
from batchlab.studies.base import EPOCHS, STEPS, Study, article_table, curve_panels
from batchlab.studies.results import Arm, Results, arm, phase


class BatchSize(Study):
    """Four batch sizes, all else equal."""

    id = "batch-size"
    title = "Effect of batch size"
    question = "What does the batch size change, all else equal, in the same number of epochs?"

    def arms(self, protocol: Protocol) -> dict[str, Arm]:
        """The smallest first."""
        sizes = {
            "tiny": protocol.tiny,
            "small": protocol.small,
            "middle": protocol.middle,
            "large": protocol.large,
        }
        return {role: arm(phase(protocol, size)) for role, size in sizes.items()}

    def findings(self, results: Results) -> list[Finding]:
        """Large against small, and what the article adds on the tiny batch."""
        arms = self.arms(results.protocol)
        tiny, small, large = arms["tiny"], arms["small"], arms["large"]
        lost = results.difference(large, small, "test_accuracy")
        gained = results.difference(tiny, small, "test_accuracy")
        return [
            self.finding(
                results,
                "large-batch-lower-accuracy",
                [Condition(f"{large.label} minus {small.label} is below 0", lost, below=0)],
                measure=f"test accuracy, {large.label} minus {small.label}",
                article="95 to 96% at 1024, 98% at 64",
            ),
            self.finding(
                results,
                "tiny-batch-higher-accuracy",
                [Condition(f"{tiny.label} minus {small.label} is above 0", gained, above=0)],
                claim="The smallest batch of all ends at a still higher test accuracy.",
                measure=f"test accuracy, {tiny.label} minus {small.label}",
                article="99% at 2, 98% at 64",
            ),
        ]

    def panels(self, results: Results) -> list[Panel]:
        """Curves against epochs, as the article draws them, and against steps."""
        arms = list(self.arms(results.protocol).values())
        return [
            *curve_panels(results, arms, self.id, EPOCHS, ordered=True),
            *curve_panels(results, arms, self.id, STEPS, ordered=True),
        ]

    def tables(self, results: Results) -> list[Table]:
        """The final numbers."""
        arms = self.arms(results.protocol)
        said = {
            arms["tiny"]: article.TINY,
            arms["small"]: article.SMALL,
            arms["middle"]: None,
            arms["large"]: article.LARGE,
        }
        return [article_table(results, said)]
