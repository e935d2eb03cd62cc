"""Named complete runs: what a name such as column4-cifar10 fixes of data, defense, training and questions. No torch."""

import dataclasses
import difflib
import re
from collections.abc import Callable
from typing import Any

from patchcert.data import DataConfig
from patchcert.data.registry import dataset_spec
from patchcert.defenses import DEFENSES, DefenseSize, Views
from patchcert.errors import RecipeError
from patchcert.geometry import Patch, ViewSet
from patchcert.models.config import ClassifierConfig
from patchcert.prediction.config import PredictionConfig
from patchcert.studies.config import StudyConfig
from patchcert.summaries import summary_of
from patchcert.training.config import TrainingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """One complete run; every field can be overridden on the command line."""

    name: str
    """Name of the recipe; results are filed under it."""
    data: DataConfig
    """Dataset and its preparation."""
    views: Views
    """View set of the defense."""
    classifier: ClassifierConfig
    """Base classifier and the encoding of its input."""
    training: TrainingConfig
    """Training of the base classifier."""
    prediction: PredictionConfig
    """Scoring of all views."""
    study: StudyConfig
    """Questions answered from the vote table."""

    def __post_init__(self) -> None:
        """Checks what no part can check alone."""
        for text in self.study.patches:
            Patch.parse(text, self.views.image_size)
        if self.voted_views.kind == "sampled":
            self.study.check_samples(self.voted_views.num_views)
            if self.training.views_per_image == 0:
                raise RecipeError(
                    f"{self.name}: training.views_per_image is 0 for all views, but those of {self.views.describe()} "
                    "are too many.\n  Set --training.views-per-image to 1 or more"
                )
        spec = dataset_spec(self.data.dataset)
        resize = self.data.resize or spec.default_resize
        if resize == "none" and spec.native_size not in (None, self.views.image_size):
            native, asked = spec.native_size, self.views.image_size
            assert native is not None
            raise RecipeError(
                f"{self.name}: {self.data.dataset} has images of {native[0]}x{native[1]}, but the views are cut out of "
                f"{asked[0]}x{asked[1]}.\n  Set --views.image-size {native[0]} {native[1]}, or --data.resize stretch"
            )

    @property
    def voted_views(self) -> ViewSet:
        """View set of the vote table: all views, or the sampled ones where they are too many to list."""
        return self.prediction.voted_views(self.views)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeFamily:
    """Recipes that differ in the size of their views.

    Attributes:
        defense: name of the defense.
        dataset: word for the dataset in the recipe's name.
        sizes: sizes worth running, the best known first.
        build: size -> recipe.
        summary: one line for lists.
    """

    defense: str
    dataset: str
    sizes: tuple[DefenseSize, ...]
    build: Callable[[Any], Recipe]
    summary: str


_FAMILIES: dict[tuple[str, str], RecipeFamily] = {}
_NAME = re.compile(r"(?P<defense>[a-z]+?)(?P<size>\d+)(x(?P<second>\d+))?-(?P<dataset>[a-z0-9-]+)")


def recipe_family(
    defense: str, dataset: str, sizes: tuple[DefenseSize, ...]
) -> Callable[[Callable[[str, Any], Recipe]], Callable[[str, Any], Recipe]]:
    """Registers a function (defense name, size) -> recipe under ``<defense><size>-<dataset>``.

    Defenses of two numbers get both as a pair, and are named ``<defense><first>x<second>-<dataset>``.

    The first line of its docstring is what ``patchcert list`` prints.
    """

    def register(build: Callable[[str, Any], Recipe]) -> Callable[[str, Any], Recipe]:
        _FAMILIES[defense, dataset] = RecipeFamily(
            defense=defense,
            dataset=dataset,
            sizes=sizes,
            build=lambda size: build(defense, size),
            summary=summary_of(build),
        )
        return build

    return register


def recipe_families() -> list[RecipeFamily]:
    """All registered families, in order of registration."""
    return list(_FAMILIES.values())


def find_recipe(name: str) -> Recipe:
    """Builds a recipe by name.

    Any size works where a family is known: ``column5-cifar10`` as well as the listed ``column4-cifar10``.

    Raises:
        RecipeError: no such recipe; names the nearest.
    """
    match = _NAME.fullmatch(name)
    family = _FAMILIES.get((match["defense"], match["dataset"])) if match else None
    if match and family and (DEFENSES[family.defense].num_sizes == 2) != (match["second"] is not None):
        family = None
    if match is None or family is None:
        known = [recipe_name(family, size) for family in _FAMILIES.values() for size in family.sizes]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise RecipeError(f"there is no recipe {name!r}.{hint}\n  See them all:  patchcert list")
    return family.build((int(match["size"]), int(match["second"])) if match["second"] else int(match["size"]))


def recipe_name(family: RecipeFamily, size: DefenseSize) -> str:
    """Name of a family's member."""
    return f"{family.defense}{size_words(size)}-{family.dataset}"


def size_words(size: DefenseSize) -> str:
    """What stands behind a defense's name: "4", or "4x2"."""
    return "x".join(map(str, size)) if isinstance(size, tuple) else str(size)


_SQUARES_32 = ("1x1", "2x2", "3x3", "4x4", "5x5", "6x6", "7x7", "8x8")
# The first is the setting of headline numbers: what the DRS tables call best.
_THRESHOLDS = (0.3, 0.1, 0.2, 0.4, 0.5)
_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# Photos lie sorted by class: the smaller what is read at a time, the more classes meet in a window of the stream.
_SMALL_GROUPS = {"rows_per_group": 16, "rows_per_shard": 1_024}
_IMAGENET_PATCHES = ("0.4%", "1%", "2%", "2.4%", "3%")
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _assemble(
    defense_name: str,
    size: DefenseSize,
    *,
    word: str,
    data: DataConfig,
    image_size: tuple[int, int],
    classifier: ClassifierConfig,
    training: TrainingConfig,
    prediction: PredictionConfig | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    patches: tuple[str, ...] = _SQUARES_32,
    headline_patch: str = "5x5",
    num_draws: tuple[int, ...] = (64, 128, 256, 512),
    num_selection: int = 1_000,
    num_estimation: int = 10_000,
    strides: dict[str, int] | None = None,
) -> Recipe:
    defense = DEFENSES[defense_name]
    views = dataclasses.replace(defense.views(image_size, size), **(strides or {}))
    crops, samples = views.kind == "crop", views.kind == "pixel"
    # Randomized cropping and samples count top classes only; the DRS tables ask for thresholds from 0.1 up.
    thresholds = () if defense_name == "crop" or samples else _THRESHOLDS
    draws = tuple(n for n in num_draws if n <= views.num_views)
    return Recipe(
        name=f"{defense_name}{size_words(size)}-{word}",
        data=data,
        views=views,
        classifier=dataclasses.replace(classifier, encoding=dataclasses.replace(defense.encoding, mean=mean, std=std)),
        training=training,
        prediction=prediction
        or PredictionConfig(
            score_floor=0.1 if thresholds else 0.0, num_samples=num_selection + num_estimation if samples else 0
        ),
        study=StudyConfig(
            patches=patches,
            headline_patch=headline_patch,
            vote_thresholds=thresholds,
            certificates=defense.certificates,
            num_draws=draws if crops else (),
            **({"num_selection": num_selection, "num_estimation": (num_estimation,)} if samples else {}),
        ),
    )


@recipe_family("column", "digits", (4, 3, 6))
@recipe_family("row", "digits", (4,))
@recipe_family("block", "digits", (12,))
@recipe_family("columns", "digits", ((2, 2), (4, 2)))
@recipe_family("rows", "digits", ((2, 2), (4, 2)))
@recipe_family("blocks", "digits", ((8, 2),))
@recipe_family("sparse", "digits", (40,))
@recipe_family("crop", "digits", (10, 8, 12))
def digits(defense: str, size: DefenseSize) -> Recipe:
    """The bundled 1,797 handwritten digits at 32x32: seconds to train, for a first look and for tests."""
    crops = defense == "crop"
    recipe = _assemble(
        defense,
        size,
        word="digits",
        data=DataConfig(dataset="digits"),
        image_size=(32, 32),
        classifier=ClassifierConfig(network="resnet9" if crops else "drs-mnist-cnn", width=0.25 if crops else 0.5),
        training=TrainingConfig(
            epochs=30, batch_size=64, optimizer="adamw", learning_rate=2e-3, views_per_image=4, checkpoint_every=10
        ),
        num_draws=(64, 128, 256),
        num_selection=100,
        num_estimation=1_000,
    )
    if not crops:
        return recipe
    # The sound confidence of fresh draws takes seconds for 500 images, but minutes for 10,000.
    certificates = (*recipe.study.certificates, "fresh_draw")
    return dataclasses.replace(recipe, study=dataclasses.replace(recipe.study, certificates=certificates))


@recipe_family("column", "mnist", (2, 1, 3, 4, 5, 6, 7, 8, 9))
@recipe_family("row", "mnist", (2, 1, 3, 4, 5, 6, 7, 8, 9))
@recipe_family("block", "mnist", (8, 4, 6, 10, 12))
@recipe_family("columns", "mnist", ((2, 2), (1, 2), (1, 3)))
@recipe_family("rows", "mnist", ((2, 2), (1, 2), (1, 3)))
@recipe_family("blocks", "mnist", ((4, 2), (3, 2), (5, 2), (7, 2)))
@recipe_family("sparse", "mnist", (5, 10))
@recipe_family("crop", "mnist", (10,))
def mnist(defense: str, size: DefenseSize) -> Recipe:
    """MNIST with the network of DRS and 60 epochs of a one-cycle schedule: 41 minutes on two shared CPU cores."""
    crops = defense == "crop"
    return _assemble(
        defense,
        size,
        word="mnist",
        data=DataConfig(dataset="mnist"),
        image_size=(28, 28),
        classifier=ClassifierConfig(network="resnet9" if crops else "drs-mnist-cnn", width=0.5 if crops else 1.0),
        # Band width and threshold are the published ones, so that no choice needs the held-out images.
        training=TrainingConfig(
            epochs=60, batch_size=128, learning_rate=0.05, weight_decay=5e-4, split="trainval", checkpoint_every=5
        ),
        patches=("1x1", "2x2", "3x3", "4x4", "5x5", "6x6", "7x7"),
        num_draws=(64, 128, 256),
    )


@recipe_family("column", "mnist-published", (2,))
@recipe_family("row", "mnist-published", (2,))
@recipe_family("block", "mnist-published", (8,))
@recipe_family("columns", "mnist-published", ((2, 2),))
@recipe_family("rows", "mnist-published", ((2, 2),))
@recipe_family("blocks", "mnist-published", ((4, 2),))
@recipe_family("sparse", "mnist-published", (5, 10))
def mnist_published(defense: str, size: DefenseSize) -> Recipe:
    """MNIST as published by DRS: 400 epochs of SGD in two steps, one band position a batch."""
    recipe = mnist(defense, size)
    return dataclasses.replace(
        recipe,
        name=f"{recipe.name}-published",
        training=TrainingConfig(
            epochs=400,
            batch_size=128,
            learning_rate=0.01,
            nesterov=False,
            weight_decay=5e-4,
            schedule="steps",
            milestones=(0.5,),
            view_sampling="batch",
            split="trainval",
            checkpoint_every=10,
        ),
    )


@recipe_family("column", "cifar10", (4, 1, 2, 3, 5, 6, 7, 8))
@recipe_family("row", "cifar10", (4, 2, 3, 5, 6, 8))
@recipe_family("block", "cifar10", (12, 8, 10, 14, 16))
@recipe_family("crop", "cifar10", (10, 6, 8, 12, 14, 16))
def cifar10(defense: str, size: int) -> Recipe:
    """CIFAR-10 with the published networks and 30 epochs of a one-cycle schedule."""
    published = cropping_cifar10 if defense == "crop" else smoothing_cifar10
    recipe = published(defense, size)
    return dataclasses.replace(
        recipe,
        name=f"{defense}{size}-cifar10",
        training=TrainingConfig(epochs=30, batch_size=128, learning_rate=0.1, augmentation="shift_flip"),
    )


@recipe_family("column", "cifar10-published", (4, 1, 2, 3, 5, 6, 7, 8))
@recipe_family("row", "cifar10-published", (4,))
@recipe_family("block", "cifar10-published", (12,))
def smoothing_cifar10(defense: str, size: int) -> Recipe:
    """CIFAR-10 as published by DRS: ResNet18, shifts and flips, 350 epochs of SGD in three steps."""
    return _assemble(
        defense,
        size,
        word="cifar10-published",
        data=DataConfig(dataset="cifar10"),
        image_size=(32, 32),
        classifier=ClassifierConfig(network="resnet18-small"),
        training=TrainingConfig(
            epochs=350,
            batch_size=128,
            learning_rate=0.1,
            nesterov=False,
            weight_decay=5e-4,
            schedule="steps",
            augmentation="shift_flip",
            view_sampling="batch",
            checkpoint_every=5,
        ),
    )


@recipe_family("crop", "cifar10-published", (10, 6, 8, 12, 14, 16))
def cropping_cifar10(defense: str, size: int) -> Recipe:
    """CIFAR-10 as published by RC: ResNet9 without final pooling, positional encoding, 30 epochs of a cyclic rate."""
    return _assemble(
        defense,
        size,
        word="cifar10-published",
        data=DataConfig(dataset="cifar10"),
        image_size=(32, 32),
        classifier=ClassifierConfig(network="resnet9"),
        training=TrainingConfig(
            epochs=30, batch_size=128, optimizer="adamw", learning_rate=1e-3, augmentation="shift_flip"
        ),
        mean=_CIFAR_MEAN,
        std=_CIFAR_STD,
    )


def _one_pass_classifier(defense: str, width: float, members: int = 1) -> ClassifierConfig:
    bands = defense in ("bandnet", "bandnetrow")
    return ClassifierConfig(network="band-network" if bands else "crop-network", width=width, members=members)


@recipe_family("bandnet", "digits", (4,))
@recipe_family("bandnetrow", "digits", (4,))
@recipe_family("blocknet", "digits", (12,))
@recipe_family("cropnet", "digits", (12,))
def one_pass_digits(defense: str, size: int) -> Recipe:
    """The bundled digits with a network that scores all views in one pass: seconds to train."""
    return _assemble(
        defense,
        size,
        word="digits",
        data=DataConfig(dataset="digits"),
        image_size=(32, 32),
        classifier=_one_pass_classifier(defense, 0.25),
        training=TrainingConfig(
            epochs=12, batch_size=32, optimizer="adamw", learning_rate=6e-3, views_per_image=0, checkpoint_every=4
        ),
        num_draws=(64, 128, 256),
    )


@recipe_family("bandnet", "mnist", (2, 1, 3, 4, 5, 6, 7, 8, 9))
@recipe_family("bandnetrow", "mnist", (2, 1, 3, 4, 5, 6, 7, 8, 9))
@recipe_family("blocknet", "mnist", (8, 4, 6, 10, 12))
@recipe_family("cropnet", "mnist", (10,))
def one_pass_mnist(defense: str, size: int) -> Recipe:
    """MNIST with a network that scores all views in one pass, all of them in each step: minutes on one CPU core."""
    return _assemble(
        defense,
        size,
        word="mnist",
        data=DataConfig(dataset="mnist"),
        image_size=(28, 28),
        classifier=_one_pass_classifier(defense, 0.25),
        training=TrainingConfig(
            epochs=8, batch_size=128, learning_rate=0.1, views_per_image=0, split="trainval", precision="bfloat16"
        ),
        patches=("1x1", "2x2", "3x3", "4x4", "5x5", "6x6", "7x7"),
        num_draws=(64, 128, 256),
    )


@recipe_family("bandnet", "cifar10", (4, 1, 2, 3, 5, 6, 7, 8))
@recipe_family("bandnetrow", "cifar10", (4, 2, 3, 5, 6, 8))
@recipe_family("blocknet", "cifar10", (12, 8, 10, 14, 16))
@recipe_family("cropnet", "cifar10", (10, 6, 8, 12, 14, 16))
def one_pass_cifar10(defense: str, size: int) -> Recipe:
    """CIFAR-10 with a network that scores all views in one pass, trained on a spread of them and on the certificate."""
    bands = defense in ("bandnet", "bandnetrow")
    return _assemble(
        defense,
        size,
        word="cifar10",
        data=DataConfig(dataset="cifar10"),
        image_size=(32, 32),
        # Two band networks together still take less than one plain pass of ResNet18 over the image.
        classifier=_one_pass_classifier(defense, 1.0 if bands else 0.5, members=2 if bands else 1),
        training=TrainingConfig(
            epochs=34 if bands else 12,
            batch_size=128,
            optimizer="muon",
            learning_rate=0.02,
            weight_decay=0.01,
            views_per_image=8 if bands else 32,
            view_sampling="spread",
            objective="certified_margin",
            margin_patch="5x5",
            # 34 epochs are enough to learn plain images by heart, 12 are not.
            augmentation="trivial_augment" if bands else "shift_flip",
            # Half of the images: when all are changed, 34 epochs are too few to learn them.
            augmentation_share=0.5 if bands else 1.0,
            precision="bfloat16",
        ),
        mean=_CIFAR_MEAN,
        std=_CIFAR_STD,
    )


@recipe_family("bandnet", "imagenet", (19, 25, 37))
@recipe_family("cropnet", "imagenet", (80, 48, 64, 96))
def one_pass_imagenet(defense: str, size: int) -> Recipe:
    """ImageNet, all bands or every fourth crop each way in one pass, about the cost of one ResNet50; not tuned."""
    crops = defense == "cropnet"
    return _assemble(
        defense,
        size,
        word="imagenet",
        data=DataConfig(dataset="imagenet", resize="pad" if crops else "crop", **_SMALL_GROUPS),
        image_size=(224, 224),
        classifier=_one_pass_classifier(defense, 1.0 if crops else 1.2),
        training=TrainingConfig(
            epochs=60,
            batch_size=128,
            learning_rate=0.1,
            weight_decay=5e-5,
            views_per_image=0,
            augmentation="shift_flip",
            shift_pixels=16,
            precision="bfloat16",
        ),
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        patches=_IMAGENET_PATCHES,
        headline_patch="2%",
        # All 21,025 crops of 80x80 cost twelve times as much as these 1,369: --views.stride 1.
        strides={"stride": 4} if crops else None,
    )


@recipe_family("vitband", "digits", (4,))
def transformer_digits(defense: str, size: int) -> Recipe:
    """The bundled digits with a small vision transformer that reads only kept patches: a minute to train."""
    return _assemble(
        defense,
        size,
        word="digits",
        data=DataConfig(dataset="digits"),
        image_size=(32, 32),
        classifier=ClassifierConfig(network="vit-small", width=0.25),
        training=TrainingConfig(
            epochs=30, batch_size=64, optimizer="adamw", learning_rate=2e-3, views_per_image=4, checkpoint_every=10
        ),
    )


@recipe_family("vitband", "cifar10", (4, 1, 2, 3, 5, 6, 7, 8))
def transformer_cifar10(defense: str, size: int) -> Recipe:
    """CIFAR-10 with a small vision transformer that reads only kept patches of 4x4; a recipe for GPUs, not tuned."""
    return _assemble(
        defense,
        size,
        word="cifar10",
        data=DataConfig(dataset="cifar10"),
        image_size=(32, 32),
        classifier=ClassifierConfig(network="vit-small", width=0.5),
        training=TrainingConfig(
            epochs=100,
            batch_size=128,
            optimizer="adamw",
            learning_rate=1e-3,
            weight_decay=0.05,
            views_per_image=4,
            augmentation="shift_flip",
            precision="bfloat16",
        ),
        mean=_CIFAR_MEAN,
        std=_CIFAR_STD,
    )


@recipe_family("vitband", "imagenet", (19, 25, 37))
def transformer_imagenet(defense: str, size: int) -> Recipe:
    """ImageNet with ViT-B/16 that reads only kept patches; --views.stride 10 as published, --classifier.pretrained."""
    return _assemble(
        defense,
        size,
        word="imagenet",
        data=DataConfig(dataset="imagenet", resize="crop", **_SMALL_GROUPS),
        image_size=(224, 224),
        classifier=ClassifierConfig(network="torchvision:vit_b_16"),
        training=TrainingConfig(
            epochs=30,
            batch_size=256,
            optimizer="adamw",
            learning_rate=1e-4,
            weight_decay=0.05,
            augmentation="shift_flip",
            shift_pixels=16,
            precision="bfloat16",
        ),
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        patches=_IMAGENET_PATCHES,
        headline_patch="2%",
    )


@recipe_family("column", "imagenet", (25, 19, 37))
@recipe_family("block", "imagenet", (75,))
def smoothing_imagenet(defense: str, size: int) -> Recipe:
    """ImageNet with the network and rates of DRS: ResNet50, 299x299 pixels; two views an image in 30 epochs for 60."""
    return _assemble(
        defense,
        size,
        word="imagenet",
        data=DataConfig(dataset="imagenet", resize="crop", **_SMALL_GROUPS),
        image_size=(299, 299),
        classifier=ClassifierConfig(network="torchvision:resnet50"),
        training=TrainingConfig(
            # As many views as in the published 60 epochs of one view each, from half of the images.
            epochs=30,
            views_per_image=2,
            batch_size=196,
            learning_rate=0.1,
            nesterov=False,
            weight_decay=5e-4,
            schedule="steps",
            milestones=(20 / 60, 40 / 60),
            augmentation="shift_flip",
            shift_pixels=16,
            precision="bfloat16",
        ),
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        patches=(*_IMAGENET_PATCHES, "42x42"),
        headline_patch="42x42",
    )


@recipe_family("crop", "imagenet", (80, 48, 64, 96))
def cropping_imagenet(defense: str, size: int) -> Recipe:
    """ImageNet as published by RC: ResNet34, photos padded to 224x224, positional encoding, 30 epochs."""
    return _assemble(
        defense,
        size,
        word="imagenet",
        data=DataConfig(dataset="imagenet", resize="pad", **_SMALL_GROUPS),
        image_size=(224, 224),
        classifier=ClassifierConfig(network="torchvision:resnet34"),
        training=TrainingConfig(
            epochs=30,
            batch_size=256,
            optimizer="adamw",
            learning_rate=1e-3,
            augmentation="shift_flip",
            shift_pixels=16,
            views_per_image=2,
            precision="bfloat16",
        ),
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        patches=_IMAGENET_PATCHES,
        headline_patch="2%",
    )
