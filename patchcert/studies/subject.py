"""A vote table in, what a reader must know about what was attacked out: defense, images, model."""

import dataclasses
from typing import Any

from patchcert.data.listings import is_plain_name
from patchcert.errors import StudyError
from patchcert.geometry import view_set_from_identity
from patchcert.votes import VoteTable
from patchcert.votes.table import Identity


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What a study is about; stands beside every number it yields.

    Attributes:
        defense: name of the recipe.
        dataset: registered name.
        variant: edition of its images.
        split: name of the split.
        split_digest: digest of its images and labels, hex.
        num_images: images that were voted on.
        num_quarantined: images that could not be read; they count as wrong.
        num_unvoted: images of parts of the vote table that could not be computed; they count as wrong.
        num_classes: number of classes.
        resize: how images were brought to network size; "none": the patch acts on native pixels.
        interpolation: of the resizing, or None.
        views: identity of the view set.
        model_digest: digest of the checkpoint, hex.
    """

    defense: str
    dataset: str
    variant: str = "original"
    split: str
    split_digest: str
    num_images: int
    num_quarantined: int = 0
    num_unvoted: int = 0
    num_classes: int
    resize: str = "none"
    interpolation: str | None = None
    views: dict[str, Any]
    model_digest: str = ""

    def __post_init__(self) -> None:
        """Checks the names, which become parts of paths and of pages.

        Raises:
            StudyError: a name that holds a separator or a control character, begins with a dot, or is empty.
        """
        for what in ("defense", "dataset", "split"):
            name = getattr(self, what)
            if not isinstance(name, str) or not is_plain_name(name):
                raise StudyError(
                    f"the {what} of a study is named {name!r}.\n"
                    "  A name has no slash, backslash or control character and begins with no dot."
                )

    @classmethod
    def of_table(cls, table: VoteTable, defense: str) -> "Subject":
        """Reads the subject off a vote table."""
        return cls.of_identity(table.identity, defense, table.num_unvoted)

    @classmethod
    def of_identity(cls, identity: Identity, defense: str, num_unvoted: int) -> "Subject":
        """Reads the subject off the identity of a vote table.

        Args:
            identity: of the table.
            defense: name of the recipe.
            num_unvoted: images of parts that could not be computed.
        """
        dataset, preprocessing = identity["dataset"], identity["preprocessing"]
        return cls(
            defense=defense,
            dataset=dataset["name"],
            variant=dataset["variant"],
            split=dataset["split"],
            split_digest=dataset["digest"],
            num_images=int(dataset["num_images"]) - num_unvoted,
            num_quarantined=int(dataset["num_quarantined"]),
            num_unvoted=num_unvoted,
            num_classes=int(identity["num_classes"]),
            resize=preprocessing["resize"],
            interpolation=preprocessing["interpolation"],
            views=identity["views"],
            model_digest=identity["model"],
        )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Subject":
        """Makes a subject of what ``dataclasses.asdict`` gave.

        Raises:
            StudyError: fields are missing or unknown.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise StudyError(f"the subject of a study is incomplete: {error}.\n  Answer the study again.") from None

    @property
    def evaluated(self) -> int:
        """Denominator of every accuracy: images voted on and those set apart."""
        return self.num_images + self.num_quarantined + self.num_unvoted

    @property
    def set_apart(self) -> str:
        """Which images count as wrong unseen, in words; empty when there are none."""
        words = []
        if self.num_quarantined:
            words.append(f"{self.num_quarantined} unreadable images count as wrong")
        if self.num_unvoted:
            words.append(f"{self.num_unvoted} images of parts that failed count as wrong")
        return "; ".join(words)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the tensor that the patch acts on, in pixels."""
        return view_set_from_identity(self.views).image_size

    @property
    def tensor(self) -> str:
        """Name of the tensor that the patch acts on."""
        return "native" if self.resize == "none" else "network input"
