"""Named defenses: a name and a size in, a view set, an encoding and the certificates that fit out."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from patchcert.geometry import BandViews, BlockViews, CellViews, CropViews, PixelViews
from patchcert.views.encoding import EncodingConfig

Views = BandViews | BlockViews | CropViews | CellViews | PixelViews
DefenseSize = int | tuple[int, int]
"""What stands behind a defense's name: one number (column4), or two (columns4x2)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defense:
    """A way of looking at an image in views, and what can be proved from their votes.

    Attributes:
        name: as it appears in recipe names.
        title: in words.
        source: where it was published.
        views: (image size, what stands behind the name) -> view set.
        encoding: encoding of the views as published, without normalisation.
        certificates: names of the certificates that a study asks for by itself.
        size_means: what the number, or both of them, in a recipe's name say.
        num_sizes: how many numbers the name has, 1 or 2.
        one_pass: whether its networks score all views of an image in one pass.
    """

    name: str
    title: str
    source: str
    views: Callable[[tuple[int, int], Any], Views]
    encoding: EncodingConfig
    certificates: tuple[str, ...]
    size_means: str
    num_sizes: Literal[1, 2] = 1
    one_pass: bool = False


_DRS = "Levine & Feizi 2020, (De)randomized smoothing"
_RC = "Certified robustness via randomized cropping (ICLR 2021 submission)"
_SALMAN = "Salman et al. 2022, Certified patch robustness via smoothed vision transformers"
_BAGCERT = "Metzen & Yatsura 2021 (BagCert)"
_SPARSE = "Levine & Feizi 2019 (sparse randomized ablation), Cohen et al. 2019 (its certificate)"
_SOUND = ("counting", "placement")


def _cells(name: str, axis: Literal["both", "column", "row"], cell: str) -> Defense:
    """Smoothing over every choice of several cells of a grid."""

    def views(image_size: tuple[int, int], size: tuple[int, int]) -> CellViews:
        return CellViews(image_size=image_size, pitch=size[0], num_cells=size[1], axis=axis)

    return Defense(
        name=name,
        title=f"smoothing with several {name} of a grid in each view",
        source=f"{_DRS}, appendix D",
        views=views,
        encoding=EncodingConfig(removed="null"),
        certificates=_SOUND,
        size_means=f"{cell} of the grid's {name} x {name} in a view: {name}4x2",
        num_sizes=2,
    )


DEFENSES: dict[str, Defense] = {
    defense.name: defense
    for defense in (
        Defense(
            name="column",
            title="column smoothing",
            source=_DRS,
            views=lambda image_size, size: BandViews(image_size=image_size, width=size, axis="column"),
            encoding=EncodingConfig(removed="null"),
            certificates=_SOUND,
            size_means="width of a column band",
        ),
        Defense(
            name="row",
            title="row smoothing",
            source=_DRS,
            views=lambda image_size, size: BandViews(image_size=image_size, width=size, axis="row"),
            encoding=EncodingConfig(removed="null"),
            certificates=_SOUND,
            size_means="height of a row band",
        ),
        Defense(
            name="block",
            title="block smoothing",
            source=_DRS,
            views=lambda image_size, size: BlockViews(image_size=image_size, block_size=size),
            encoding=EncodingConfig(removed="null"),
            certificates=_SOUND,
            size_means="side of a block",
        ),
        _cells("columns", "column", "width"),
        _cells("rows", "row", "height"),
        _cells("blocks", "both", "side"),
        Defense(
            name="sparse",
            title="sparse randomized ablation: random pixels, sampled",
            source=_SPARSE,
            views=lambda image_size, size: PixelViews(image_size=image_size, num_pixels=size),
            encoding=EncodingConfig(removed="null"),
            certificates=("sampled",),
            size_means="pixels in a view",
        ),
        Defense(
            name="crop",
            title="randomized cropping",
            source=_RC,
            views=lambda image_size, size: CropViews(image_size=image_size, crop_size=(size, size), domain="valid"),
            encoding=EncodingConfig(removed="cut", positional_bound=0.1),
            certificates=(*_SOUND, "random_crops_reported"),
            size_means="side of a crop",
        ),
        Defense(
            name="bandnet",
            title="column smoothing, all columns in one pass",
            source=f"{_DRS}; one pass in the manner of {_BAGCERT}",
            views=lambda image_size, size: BandViews(image_size=image_size, width=size, axis="column"),
            encoding=EncodingConfig(removed="cut", coordinates=True),
            certificates=_SOUND,
            size_means="width of a column band",
            one_pass=True,
        ),
        Defense(
            name="bandnetrow",
            title="row smoothing, all rows in one pass",
            source=f"{_DRS}; one pass in the manner of {_BAGCERT}",
            views=lambda image_size, size: BandViews(image_size=image_size, width=size, axis="row"),
            encoding=EncodingConfig(removed="cut", coordinates=True),
            certificates=_SOUND,
            size_means="height of a row band",
            one_pass=True,
        ),
        Defense(
            name="blocknet",
            title="block smoothing, all blocks in one pass",
            source=f"{_DRS}; one pass in the manner of {_BAGCERT}",
            views=lambda image_size, size: BlockViews(image_size=image_size, block_size=size),
            encoding=EncodingConfig(removed="cut", coordinates=True),
            certificates=_SOUND,
            size_means="side of a block",
            one_pass=True,
        ),
        Defense(
            name="vitband",
            title="column smoothing, a vision transformer on kept patches",
            source=f"{_DRS}; {_SALMAN}",
            views=lambda image_size, size: BandViews(image_size=image_size, width=size, axis="column"),
            encoding=EncodingConfig(removed="drop"),
            certificates=_SOUND,
            size_means="width of a column band",
        ),
        Defense(
            name="cropnet",
            title="cropping, all crops in one pass",
            source=f"{_RC}; one pass in the manner of {_BAGCERT}",
            views=lambda image_size, size: CropViews(image_size=image_size, crop_size=(size, size), domain="valid"),
            encoding=EncodingConfig(removed="cut", coordinates=True),
            certificates=(*_SOUND, "random_crops_reported"),
            size_means="side of a crop",
            one_pass=True,
        ),
    )
}
