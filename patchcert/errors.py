"""The errors a user can cause or must act on: what was asked, what is wrong with both values, what to do next."""


class PatchcertError(Exception):
    """Base of all errors that reach the user as one message without a traceback.

    Built from one string, so that it survives pickling between processes. The first line says what is wrong, with
    the value found and the value expected; indented lines below say what to do.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)


class GeometryError(PatchcertError):
    """A patch, view set or image size that cannot exist or do not fit together."""


class CertificateError(PatchcertError):
    """Votes, counts or settings that a certificate cannot be computed from."""


class DatasetError(PatchcertError):
    """A dataset, split or prepared folder that is missing, empty, broken or another one than asked for."""


class ImageError(DatasetError):
    """Images that cannot be decoded or labels out of range; the message names each row."""


class CheckpointError(PatchcertError):
    """A checkpoint that is missing, damaged or made for another model, view set or class count."""


class ModelError(PatchcertError):
    """A base classifier that cannot be built or that returns the wrong thing."""


class TrainingError(PatchcertError):
    """A training run that cannot start, continue or that produced a loss that is not finite."""


class VoteTableError(PatchcertError):
    """A vote table that is missing, incomplete, damaged or made from something else than asked for."""


class StudyError(PatchcertError):
    """A question that the vote tables at hand cannot answer, or a result folder that cannot be read."""


class RecipeError(PatchcertError):
    """An unknown recipe or a setting that has no effect or no meaning."""


class ResourceError(PatchcertError):
    """Hardware, memory or disk space that is not there."""


class TrackingError(PatchcertError):
    """The experiment tracker cannot be reached or refuses what is published."""


class ContradictionError(PatchcertError):
    """Votes or answers that do not follow from the images, the model or the votes that they name."""
