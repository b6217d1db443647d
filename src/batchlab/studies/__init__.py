"""The article's experiments, a file each."""

from batchlab.studies.adam import Adam
from batchlab.studies.base import Study
from batchlab.studies.batch_size import BatchSize
from batchlab.studies.distance import Distance
from batchlab.studies.gradient import Gradient
from batchlab.studies.learning_rate import LearningRate
from batchlab.studies.switching import Switching

STUDIES: dict[str, Study] = {
    study.id: study
    for study in (BatchSize(), LearningRate(), Switching(), Gradient(), Distance(), Adam())
}
