"""Questions asked of vote tables, their answers, figures and reports; pandas, matplotlib, no torch and no ray."""

import importlib
from typing import Any

_HOME = {
    "CERTIFICATES": "config",
    "PartAnswers": "answering",
    "Question": "questions",
    "StudyConfig": "config",
    "StudyResult": "results",
    "Subject": "subject",
    "answer_part": "answering",
    "combine": "answering",
    "console_table": "console",
    "first_settings": "headline",
    "per_image_table": "answering",
    "reported": "published",
    "summarise": "answering",
    "write_report": "writing",
    "write_study": "writing",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    # pandas, scipy and matplotlib take seconds to import; whoever needs only the settings does not wait for them.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
