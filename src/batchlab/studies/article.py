"""The article's own numbers and words: "Effect of batch size on training dynamics", 2018.

Distances: W of all weights, b of all biases, from their initial values; oW and ob from the
origin. A is test accuracy. All on MNIST with a 784-1024-1024-10 perceptron. Facts only.
"""

from typing import NamedTuple

# The article gives accuracies in whole percents: what it calls equal is equal within one point.
POINT = 0.01


class ArticleRun(NamedTuple):
    """What the article says of one run; `None` where it says nothing."""

    A: float
    W: float | None = None
    b: float | None = None
    oW: float | None = None
    ob: float | None = None
    cos: tuple[float, float, float] | None = None
    train_A: float | None = None


TINY = ArticleRun(A=0.99)
SMALL = ArticleRun(0.98, 6.71, 0.11, 44.9, 0.11, (0.988, 0.993, 0.928), 1.00)
LARGE = ArticleRun(0.95, None, None, 44.1, 0.07, (0.998, 0.998, 0.978))
LARGE_HIGH_RATE = ArticleRun(0.98, None, None, 44.7, 0.10, (0.991, 0.994, 0.936))
LARGE_MORE_EPOCHS = ArticleRun(0.98, 6.63, 0.11, 44.9, 0.11, (0.989, 0.993, 0.930))
ADAM = ArticleRun(0.95, 254.3, 18.3, 258.0, 18.3, (0.124, 0.359, 0.153))
SWITCHED_A = 0.98

NORM_EXPONENT = 0.5

# The twelve findings of its closing list, in its order: id and what it says, in our words.
FINDINGS: dict[str, str] = {
    "large-batch-lower-accuracy": (
        "A larger batch ends at a lower test accuracy after the same number of epochs."
    ),
    "learning-rate-recovers": (
        "A higher learning rate recovers the accuracy that the larger batch lost."
    ),
    "switching-recovers": (
        "A large-batch start does not trap the model: a smaller batch or a higher rate later "
        "recovers the accuracy."
    ),
    "gradient-norm-grows": (
        "For the same number of samples seen, larger batches make larger gradient steps."
    ),
    "relative-spread-grows": (
        "At equal mean norm, larger batches have the larger spread of the norm."
    ),
    "norm-depends-on-draw": (
        "With large batches the norm depends strongly on which samples were drawn, with small "
        "ones weakly."
    ),
    "heavier-tail": "The distribution of gradient values has a heavier tail for larger batches.",
    "too-short-a-way": (
        "With a batch-averaged loss, large batches cannot travel far enough to the better "
        "solutions in the same epochs."
    ),
    "compensation": (
        "A higher rate or more epochs lets a large batch reach the faraway solutions."
    ),
    "steps-limit-distance": (
        "For a fixed number of steps, SGD's distance is bounded independently of the batch size."
    ),
    "adam-larger-weights": (
        "Adam finds solutions with much larger weights, and a lower test accuracy."
    ),
    "sgd-keeps-the-initial-sphere": (
        "SGD stays near the initial radius and direction; Adam ignores the initialisation."
    ),
}
