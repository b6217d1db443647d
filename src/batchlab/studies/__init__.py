"""The article's experiments and the questions it left open, a file each."""

from batchlab.studies.adam import Adam
from batchlab.studies.base import Study
from batchlab.studies.batch_size import BatchSize
from batchlab.studies.direction import Direction
from batchlab.studies.distance import Distance
from batchlab.studies.gradient import Gradient
from batchlab.studies.learning_rate import LearningRate
from batchlab.studies.spread import Spread
from batchlab.studies.switching import Switching

STUDIES: dict[str, Study] = {
    study.id: study
    for study in (
        BatchSize(),
        LearningRate(),
        Switching(),
        Gradient(),
        Spread(),
        Direction(),
        Distance(),
        Adam(),
    )
}
