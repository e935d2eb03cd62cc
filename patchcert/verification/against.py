"""What votes and answers are compared with beside their own digests: settings only, nothing heavy is imported."""

import dataclasses

from patchcert.errors import RecipeError


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedNetwork:
    """Code that a checkpoint needs and that only the user can name."""

    network: str | None = None
    """package.module:function of a checkpoint's own network; nothing is imported that is not named here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Against:
    """Options of ``patchcert verify``."""

    data: str | None = None
    """Prepared images that labels and names of images are compared with: a split, or a folder that holds it."""
    checkpoint: str | None = None
    """Checkpoint that has to have voted, or a folder that holds it; with --data it scores a sample of images again."""
    votes: str | None = None
    """Vote table that studies are answered from again, all images; the same as naming it among the folders."""
    images: int = 64
    """Images of the sample, for each vote table and study."""
    seed: int | None = None
    """Of the sample; unset: another one each time, which nobody can have foreseen. It is printed."""
    classifier: NamedNetwork = dataclasses.field(default_factory=NamedNetwork)
    """A network of your own."""

    def __post_init__(self) -> None:
        """Checks ranges, and that no setting is without effect."""
        if self.images < 1:
            raise RecipeError(f"verify: images is {self.images}; a sample has at least 1.\n  Use --images 64")
        if self.seed is not None and self.seed < 0:
            raise RecipeError(f"verify: seed is {self.seed}, but must be at least 0.\n  Leave it out for a new one.")
        if self.classifier.network is not None and self.checkpoint is None:
            raise RecipeError(
                f"verify: --classifier.network {self.classifier.network} has no effect, because no model is asked.\n"
                "  Name the model too:  --checkpoint FOLDER --data FOLDER"
            )
        given = [name for name, default in (("images", 64), ("seed", None)) if getattr(self, name) != default]
        if given and (self.checkpoint is None or self.data is None):
            raise RecipeError(
                f"verify: --{given[0]} {getattr(self, given[0])} has no effect, because no images are scored again.\n"
                "  Name model and images too:  --checkpoint FOLDER --data FOLDER"
            )
