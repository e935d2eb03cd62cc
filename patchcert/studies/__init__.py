"""Questions asked of vote tables, their answers, figures and reports; pandas, matplotlib, no torch and no ray."""

from patchcert.studies.answering import PartAnswers, answer_part, combine, per_image_table, summarise
from patchcert.studies.questions import CERTIFICATES, Question, StudyConfig, headline_patch, questions
from patchcert.studies.results import StudyResult
from patchcert.studies.subject import Subject

__all__ = [
    "CERTIFICATES",
    "PartAnswers",
    "Question",
    "StudyConfig",
    "StudyResult",
    "Subject",
    "answer_part",
    "combine",
    "headline_patch",
    "per_image_table",
    "questions",
    "summarise",
]
