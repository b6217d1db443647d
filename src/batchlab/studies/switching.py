"""Does a large-batch start trap the model?"""

from batchlab.analysis.intervals import Condition
from batchlab.record import Finding, Panel, Table
from batchlab.spec import Protocol
from batchlab.studies import article
from batchlab.studies.base import EPOCHS, Study, article_table, line_panel, recovers
from batchlab.studies.results import Arm, Results, arm, phase


class Switching(Study):
    """A large-batch start, then a smaller batch or a higher rate."""

    id = "switching"
    title = "Switching"
    question = "Can a model that began with large batches still reach the small batch's accuracy?"

    def arms(self, protocol: Protocol) -> dict[str, Arm]:
        """The reference, the control (more of the same) and three switches."""
        small, large = phase(protocol, protocol.small), phase(protocol, protocol.large)
        high = phase(protocol, protocol.large, rate=protocol.high_learning_rate)
        return {
            "small": arm(small),
            "control": arm(phase(protocol, protocol.large, 2 * protocol.epochs)),
            "early": arm(phase(protocol, protocol.large, 1), small),
            "late": arm(large, small),
            "high": arm(large, high),
        }

    def findings(self, results: Results) -> list[Finding]:
        """Every switch ends within one point of the small batch, and above the control."""
        arms = self.arms(results.protocol)
        switches = [arms["early"], arms["late"], arms["high"]]
        back = [recovers(results, one, arms["small"]) for one in switches]
        beyond = [
            Condition(
                f"{one.label} minus the control is above 0",
                results.difference(one, arms["control"], "test_accuracy"),
                above=0,
            )
            for one in switches
        ]
        worst = min(back, key=lambda condition: condition.interval.low)
        return [
            self.finding(
                results,
                "switching-recovers",
                [*back, *beyond],
                effect=worst.interval,
                measure="test accuracy, the worst of three switches minus the small batch",
                article="98% after every switch",
            )
        ]

    def panels(self, results: Results) -> list[Panel]:
        """The last epochs, as the article draws them, and the whole runs."""
        arms, epochs = list(self.arms(results.protocol).values()), results.protocol.epochs
        panels = []
        for name, title in (
            ("test_accuracy", "Test accuracy"),
            ("train_accuracy", "Train accuracy"),
        ):
            stem = f"{self.id}-{name.replace('_', '-')}"
            panels += [
                line_panel(
                    results,
                    arms,
                    f"{stem}-last",
                    name,
                    f"{title}, last {epochs} epochs",
                    EPOCHS,
                    last_epochs=epochs,
                    says=f"The last {epochs} epochs of every run, as the article draws them.",
                ),
                line_panel(results, arms, f"{stem}-all", name, f"{title}, all epochs", EPOCHS),
            ]
        return panels

    def tables(self, results: Results) -> list[Table]:
        """The final numbers."""
        arms = self.arms(results.protocol)
        switched = article.ArticleRun(A=article.SWITCHED_A)
        said = {
            arms["small"]: article.SMALL,
            arms["control"]: None,
            arms["early"]: switched,
            arms["late"]: switched,
            arms["high"]: switched,
        }
        return [article_table(results, said)]
