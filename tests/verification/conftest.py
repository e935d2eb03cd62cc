import dataclasses
from pathlib import Path

import pytest
from verification import made

from patchcert.prediction.config import PredictionConfig
from patchcert.studies.results import StudyResult
from patchcert.votes import VoteTable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Honest:
    """A work folder of a model that was trained on the digits, with tables and studies that follow from it.

    ``table`` holds scores, ``plain`` the top classes only.
    """

    folder: Path
    data: str
    model: str
    digest: str
    dataset: object
    table: VoteTable
    plain: VoteTable
    study: StudyResult
    plain_study: StudyResult

    def against(self, **changes):
        return {"data": self.data, "checkpoint": self.model, "seed": 7, **changes}


@pytest.fixture(scope="session")
def honest(column_digits, prepared_digits, tmp_path_factory):
    folder, dataset = tmp_path_factory.mktemp("honest"), prepared_digits["test"]
    digest = made.save_model(folder / "model", column_digits.classifier, dataset)
    made_of = column_digits.classifier, digest, dataset
    table = made.vote(folder / "table", *made_of)
    plain = made.vote(folder / "plain", *made_of, PredictionConfig(score_floor=0))
    return Honest(
        folder=folder,
        data=dataset.folder.path(),
        model=str(folder / "model"),
        digest=digest,
        dataset=dataset,
        table=table,
        plain=plain,
        study=made.study(folder / "study", table),
        plain_study=made.study(folder / "plain_study", plain, made.PLAIN_STUDY),
    )
