"""Named defenses: a name and a size in, a view set, an encoding and the certificates that fit out."""

import dataclasses
from collections.abc import Callable

from patchcert.geometry import BandViews, BlockViews, CropViews
from patchcert.views.encoding import EncodingConfig

Views = BandViews | BlockViews | CropViews


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defense:
    """A way of looking at an image in views, and what can be proved from their votes.

    Attributes:
        name: as it appears in recipe names.
        title: in words.
        source: where it was published.
        views: (image size, size of a view) -> view set.
        encoding: encoding of the views as published, without normalisation.
        certificates: names of the certificates that a study asks for by itself.
        size_means: what the number in a recipe's name says.
    """

    name: str
    title: str
    source: str
    views: Callable[[tuple[int, int], int], Views]
    encoding: EncodingConfig
    certificates: tuple[str, ...]
    size_means: str


_DRS = "Levine & Feizi 2020, (De)randomized smoothing"
_RC = "Certified robustness via randomized cropping (ICLR 2021 submission)"
_BAGCERT = "Metzen & Yatsura 2021 (BagCert)"
_SOUND = ("counting", "placement")

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
        ),
        Defense(
            name="cropnet",
            title="cropping, all crops in one pass",
            source=f"{_RC}; one pass in the manner of {_BAGCERT}",
            views=lambda image_size, size: CropViews(image_size=image_size, crop_size=(size, size), domain="valid"),
            encoding=EncodingConfig(removed="cut", coordinates=True),
            certificates=(*_SOUND, "random_crops_reported"),
            size_means="side of a crop",
        ),
    )
}
