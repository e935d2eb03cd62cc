"""A public list of drawn views: one fixed draw, the same for every image, as a view set of its own."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from patchcert.errors import GeometryError
from patchcert.geometry.patches import Patch
from patchcert.geometry.sizes import Size
from patchcert.geometry.view_sets import ViewSet, check_indices


@dataclass(frozen=True, kw_only=True)
class DrawnViews(ViewSet):
    """The listed views of another set, in the listed order; a view may be listed several times.

    The attacker knows the list, so that certificates over it are deterministic. Its votes are those of the whole set at
    ``view_indices``.

    Raises:
        GeometryError: the list is empty or an index is out of range.
    """

    kind: ClassVar[str] = "drawn"

    views: ViewSet
    """The set that the views are taken from."""

    view_indices: tuple[int, ...]
    """The drawn views, by their index in ``views``."""

    def __post_init__(self) -> None:
        indices = check_indices(self.view_indices, self.views.num_views)
        if not len(indices):
            raise GeometryError("0 views were drawn, but at least 1 is needed.\n  List the indices of the drawn views.")
        object.__setattr__(self, "view_indices", tuple(indices.tolist()))

    @classmethod
    def draw(
        cls, views: ViewSet, num_draws: int, rng: np.random.Generator, *, replacement: bool = True
    ) -> "DrawnViews":
        """Draw views uniformly from a set.

        Args:
            views: the set to draw from.
            num_draws: views to draw, >= 1.
            rng: source of randomness.
            replacement: whether a view can be drawn twice.

        Raises:
            GeometryError: nothing is drawn, or more views than there are without replacement.
        """
        if num_draws < 1 or (not replacement and num_draws > views.num_views):
            raise GeometryError(
                f"{num_draws} views were to be drawn{'' if replacement else ' without replacement'}, but the set has "
                f"{views.num_views}.\n  Draw at least 1, and at most all of them without replacement."
            )
        return cls(
            views=views, view_indices=tuple(rng.choice(views.num_views, num_draws, replace=replacement).tolist())
        )

    @property
    def image_size(self) -> Size:  # type: ignore[override]
        """(height, width) of the image, in pixels."""
        return self.views.image_size

    @property
    def num_views(self) -> int:
        """Number of drawn views, repetitions included."""
        return len(self.view_indices)

    @property
    def view_size(self) -> Size:
        """(height, width) of the tensor that the base classifier gets, in pixels."""
        return self.views.view_size

    def retained(self, view_indices: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return the pixels that the given drawn views retain, boolean, shape (len(view_indices), H, W)."""
        return self.views.retained(self._of(check_indices(view_indices, self.num_views)))

    def incidence(
        self, patch: Patch, view_indices: npt.ArrayLike | None = None, *, only_undominated: bool = False
    ) -> npt.NDArray[np.bool_]:
        """Return which drawn views each placement affects, boolean, shape (P, drawn views); see ``ViewSet``."""
        drawn = np.array(self.view_indices) if view_indices is None else self._of(view_indices)
        return self.views.incidence(patch, drawn, only_undominated=only_undominated)

    def _of(self, view_indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        return np.array(self.view_indices)[check_indices(view_indices, self.num_views)]

    def describe(self) -> str:
        """Return the view set in a few words."""
        return f"a fixed draw of {self.num_views} from {self.views.describe()}"
