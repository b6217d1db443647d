"""Where does Adam go, and where does SGD?"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from batchlab.analysis.fits import exponent
from batchlab.analysis.intervals import Condition, Interval, mean_interval
from batchlab.record import WEIGHTS, Axis, Finding, Panel, Table
from batchlab.spec import Optimizer, Protocol
from batchlab.studies import article
from batchlab.studies.base import EPOCHS, PAIRED_RATIO, T_TEST, Study, article_table, line_panel
from batchlab.studies.results import Arm, Results, arm, phase

# Set between what the article shows of SGD (radius within 2.2% of the initial, least cosine 0.928)
# and of Adam (greatest cosine 0.359), before anything was run.
SAME_RADIUS = 0.05
SAME_DIRECTION, OTHER_DIRECTION = 0.9, 0.5
ALMOST_LINEAR = 0.75  # an exponent above; a diffusion's is 1/2


class Adam(Study):
    """The small batch with SGD, with Adam, and with Adam's decoupled weight decay."""

    id = "adam"
    title = "Adam against SGD"
    question = "How far do Adam's solutions lie, and does Adam keep anything of the initialisation?"

    def arms(self, protocol: Protocol) -> dict[str, Arm]:
        """SGD, Adam, then AdamW at each of the protocol's weight decays."""
        small = protocol.small
        decayed = {
            f"adamw-{decay:g}": arm(
                phase(protocol, small, optimizer=Optimizer(name="adamw", weight_decay=decay)),
                label=f"adamw B={small} decay={decay:g}",
            )
            for decay in protocol.weight_decays
        }
        return {
            "sgd": arm(phase(protocol, small), label=f"sgd B={small}"),
            "adam": arm(
                phase(protocol, small, optimizer=Optimizer(name="adam")), label=f"adam B={small}"
            ),
        } | decayed

    def findings(self, results: Results) -> list[Finding]:
        """The article's two, the two shapes of its curves, and its recommendation."""
        arms = self.arms(results.protocol)
        sgd, adam = arms["sgd"], arms["adam"]
        larger = results.ratio(adam, sgd, "norm", WEIGHTS)
        worse = results.difference(adam, sgd, "test_accuracy")
        keeps = Condition(
            f"least cosine of any SGD layer is above {SAME_DIRECTION:g}",
            self._cosine(results, sgd, np.min),
            above=SAME_DIRECTION,
        )
        stays = Condition(
            f"SGD's final radius over the initial is within {SAME_RADIUS:.0%} of 1",
            self._radius(results, sgd),
            above=1 - SAME_RADIUS,
            below=1 + SAME_RADIUS,
        )
        forgets = Condition(
            f"greatest cosine of any Adam layer is below {OTHER_DIRECTION:g}",
            self._cosine(results, adam, np.max),
            below=OTHER_DIRECTION,
        )
        slow, fast = self._exponent(results, sgd), self._exponent(results, adam)
        return [
            self.finding(
                results,
                "adam-larger-weights",
                [
                    Condition("Adam's final weight norm over SGD's is above 1", larger, above=1),
                    Condition("Adam's accuracy minus SGD's is below 0", worse, below=0),
                ],
                test=PAIRED_RATIO,
                measure="final norm of the weights, Adam over SGD",
                article="258 over 44.9, a ratio of 5.7; 95% against 98%",
            ),
            self.finding(
                results,
                "sgd-keeps-the-initial-sphere",
                [keeps, stays, forgets],
                measure="least cosine of any layer with its initial weights, SGD",
                article="least cosine .928, radius 44.9 from 44; Adam's greatest cosine .359",
                test=T_TEST,
            ),
            self.finding(
                results,
                "sgd-distance-sublinear",
                [Condition("SGD's exponent is below 1", slow, below=1)],
                claim="SGD's distance from the initial weights grows sublinearly in the epochs.",
                measure="exponent of distance against epoch, SGD",
                article="'definitely sublinear'",
                test=T_TEST,
            ),
            self.finding(
                results,
                "adam-distance-almost-linear",
                [Condition(f"Adam's exponent is above {ALMOST_LINEAR}", fast, above=ALMOST_LINEAR)],
                claim="Adam's distance from the initial weights grows almost linearly.",
                measure="exponent of distance against epoch, Adam",
                article="'almost linear'",
                test=T_TEST,
            ),
            *(self._decay(results, one) for role, one in arms.items() if "adamw" in role),
        ]

    def _decay(self, results: Results, decayed: Arm) -> Finding:
        arms = self.arms(results.protocol)
        gain = results.difference(decayed, arms["adam"], "test_accuracy")
        shrink = results.ratio(decayed, arms["adam"], "norm", WEIGHTS)
        decay = decayed.schedule[0].optimizer.weight_decay
        return self.finding(
            results,
            f"weight-decay-{decay:g}-helps-adam",
            [
                Condition("accuracy with decay minus that without is above 0", gain, above=0),
                Condition("weight norm with decay over that without is below 1", shrink, below=1),
            ],
            claim=f"Decoupled weight decay of {decay:g} brings Adam's weights and accuracy back.",
            test=PAIRED_RATIO,
            measure=f"test accuracy, AdamW with decay {decay:g} minus Adam",
            article="weight decay is recommended with Adam; not tried",
        )

    def _exponent(self, results: Results, one: Arm) -> Interval:
        """Of distance against epoch, from the first full epoch on, seed by seed."""
        curves = [results.curve(one, seed, "distance", WEIGHTS) for seed in results.seeds]
        whole = [(c, c.epoch >= 1) for c in curves if c is not None]
        return mean_interval([exponent(c.epoch[past], c.value[past]) for c, past in whole])

    def _cosine(self, results: Results, one: Arm, pick: Callable[..., Any]) -> Interval:
        cosines = [results.final(one, "cosine", layer) for layer in results.layers()]
        return mean_interval(pick(cosines, axis=0) if cosines else [])

    def _radius(self, results: Results, one: Arm) -> Interval:
        curves = [results.curve(one, seed, "norm", WEIGHTS) for seed in results.seeds]
        begun = np.array([np.nan if c is None else c.value[0] for c in curves])
        return mean_interval(results.final(one, "norm", WEIGHTS) / begun)

    def panels(self, results: Results) -> list[Panel]:
        """Distance from the start and from the origin, then cosines by layer."""
        arms = list(self.arms(results.protocol).values())
        pair = arms[:2]
        return [
            line_panel(
                results,
                pair[:1],
                "adam-distance-sgd",
                "distance",
                "Distance from the initial weights, SGD",
                EPOCHS,
                layer=WEIGHTS,
            ),
            line_panel(
                results,
                pair[1:],
                "adam-distance-adam",
                "distance",
                "Distance from the initial weights, Adam",
                EPOCHS,
                layer=WEIGHTS,
            ),
            line_panel(
                results,
                arms,
                "adam-norm",
                "norm",
                "Distance from the origin",
                EPOCHS,
                layer=WEIGHTS,
                log=True,
            ),
            line_panel(results, arms, "adam-accuracy", "test_accuracy", "Test accuracy", EPOCHS),
            self._cosines(results),
        ]

    def _cosines(self, results: Results) -> Panel:
        rows = []
        for one in self.arms(results.protocol).values():
            for place, layer in enumerate(results.layers(), 1):
                i = mean_interval(results.final(one, "cosine", layer))
                rows.append((one.label, f"layer {place}", i.effect, i.low, i.high, i.n))
        columns = ["arm", "layer", "cosine", "low", "high", "n"]
        return Panel(
            id="adam-cosines",
            title="Cosine of final and initial weights, by layer",
            mark="point",
            frame=pd.DataFrame(rows, columns=columns),
            x=Axis("layer", "Layer, from input to output"),
            y=Axis("cosine", "Cosine with the initial weights"),
            series=Axis("arm", "Run"),
            low="low",
            high="high",
            caption=f"Mean and 95% interval over n = {len(results.seeds)} seeds.",
        )

    def tables(self, results: Results) -> list[Table]:
        """The final numbers."""
        arms = self.arms(results.protocol)
        said = {"sgd": article.SMALL, "adam": article.ADAM}
        return [article_table(results, {one: said.get(role) for role, one in arms.items()})]
