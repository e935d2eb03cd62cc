"""Decodes one image to pixels at network size: bounded, strict, and the same on every thread."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from patchcert.data.config import Interpolation, Resize
from patchcert.errors import DatasetError, ImageError

# Other formats Pillow knows start external programs (EPS) or have no place in an image dataset.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_LOSSLESS = {"PNG", "BMP", "GIF", "TIFF", "PPM"}
_DIRECT_MODES = {"1", "L", "LA", "RGB", "RGBA", "RGBX"}
_COLOUR_MODES = {"P", "PA", "CMYK", "YCbCr", "HSV"}
# Colours that were multiplied by their opacity, and what they are before that.
_MULTIPLIED_MODES = {"La": "LA", "RGBa": "RGBA"}
_SIXTEEN_BIT_MODES = {"I;16", "I;16L", "I;16B", "I;16N"}
# Tags of a TIFF file: bits of a value, what 0 means, and whether values are unsigned, signed or floating.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# Photos above this size are decoded one at a time, so that memory does not grow with the number of threads.
_LARGE_PIXELS = 16_000_000
_large_image_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an encoded image becomes network input.

    Attributes:
        image_size: (height, width) of the result, pixels >= 1.
        num_channels: 1 (grey) or 3 (RGB).
        resize: none, stretch, pad or crop.
        interpolation: bilinear or bicubic, antialiased; None for resize none.
        max_pixels: images of more pixels are refused before they are decoded.
        encoding: "lossless" or "jpeg" when other files would be another variant of the dataset.
    """

    image_size: tuple[int, int]
    num_channels: int
    resize: Resize
    interpolation: Interpolation | None
    max_pixels: int
    encoding: str | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of one image at network size."""
        return self.image_size[0] * self.image_size[1] * self.num_channels

    def describe(self) -> dict[str, Any]:
        """JSON-able record of everything that was done to the pixels."""
        steps = {
            "none": "none",
            "stretch": "stretched to the image size",
            "pad": "longer side fitted, centred on zeros",
            "crop": "shorter side to 256/224 of the image size, centre crop",
        }
        return {
            "resize": self.resize,
            "geometry": steps[self.resize],
            "interpolation": self.interpolation,
            "antialias": self.resize != "none",
            "colours": "RGB" if self.num_channels == 3 else "grey, ITU-R 601 luma",
            "alpha": "dropped",
            "exif_orientation": "ignored",
            "sixteen_bit": "grey scaled by 255/65535 and rounded, colours cut to their high byte",
        }

    def apply(self, data: bytes | None) -> bytes:
        """The pixels of ``convert``."""
        return self.convert(data)[0]

    def convert(self, data: bytes | None, name: str = "") -> tuple[bytes, str | None]:
        """Decode, convert and resize one image.

        Args:
            data: the encoded file.
            name: of the image; the format its suffix promises is compared with the one found.

        Returns:
            uint8 pixels, row by row, channels last: ``num_bytes`` bytes; and what is unusual about the file and was
            converted ("CMYK to RGB", "a PNG file by another name", "the first of 12 frames"), or None.

        Raises:
            ImageError: it cannot be decoded, is cut off, too large, without any extent, of an unknown colour space or
                of another size.
            DatasetError: it is encoded in a way that makes it another variant of the dataset.
        """
        if not data:
            raise ImageError("it has no bytes")
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                self._check_encoding(image.format or "")
                num_pixels = image.width * image.height
                if num_pixels > self.max_pixels:
                    raise ImageError(
                        f"it has {image.height}x{image.width} = {num_pixels:,} pixels, more than max_pixels "
                        f"{self.max_pixels:,}"
                    )
                if num_pixels == 1 and self.resize != "none":
                    raise ImageError("it is 1x1 pixels: a placeholder, not a picture")
                num_frames = int(getattr(image, "n_frames", 1))
                with _large_image_lock if num_pixels > _LARGE_PIXELS else contextlib.nullcontext():
                    image.load()
                    converted = self._converted(image)
                    return self._resized(converted).tobytes(), _conversion(image, converted.mode, name, num_frames)
        except Image.DecompressionBombError:
            raise ImageError(f"it has more than max_pixels {self.max_pixels:,} pixels") from None
        except UnidentifiedImageError:
            raise ImageError(f"its {len(data):,} bytes are no image in a format that is read here") from None
        except DatasetError:
            raise
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise many types for damaged files: OSError, SyntaxError, ...
            raise ImageError(f"it cannot be decoded: {error}") from error

    def _check_encoding(self, found: str) -> None:
        if self.encoding == "lossless" and found not in _LOSSLESS:
            raise DatasetError(f"a lossless dataset was asked for, but the images are {found}")
        if self.encoding == "jpeg" and found not in ("JPEG", "MPO"):
            raise DatasetError(f"the JPEG variant was asked for, but the images are {found}")

    def _converted(self, image: Image.Image) -> Image.Image:
        target = "RGB" if self.num_channels == 3 else "L"
        _refuse_signed(image)
        if image.mode == target:
            return image
        if image.mode in _SIXTEEN_BIT_MODES or image.mode == "I":
            most = _brightest(image)
            values_HW = np.asarray(image).astype(np.int64)
            image = Image.fromarray(((values_HW * 255 + most // 2) // most).astype(np.uint8))
        elif image.mode in _MULTIPLIED_MODES:
            image = image.convert(_MULTIPLIED_MODES[image.mode])
        elif image.mode in _COLOUR_MODES:
            image = image.convert("RGB")
        elif image.mode not in _DIRECT_MODES:
            raise ImageError(f"its colour space {image.mode!r} has no conversion to {target}")
        return image if image.mode == target else image.convert(target)

    def _resized(self, image: Image.Image) -> Image.Image:
        height, width = self.image_size
        if self.resize == "none":
            if (image.height, image.width) != self.image_size:
                raise ImageError(f"it is {image.height}x{image.width} pixels, but resize 'none' needs {height}x{width}")
            return image
        assert self.interpolation is not None
        resample = _FILTERS[self.interpolation]
        if self.resize == "stretch":
            return image.resize((width, height), resample)
        scaled_height, scaled_width = scaled_size((image.height, image.width), self.image_size, self.resize)
        if scaled_height * scaled_width > self.max_pixels:
            raise ImageError(
                f"it is {image.height}x{image.width} pixels and would become {scaled_height}x{scaled_width}, more than "
                f"max_pixels {self.max_pixels:,}"
            )
        scaled = image.resize((scaled_width, scaled_height), resample)
        if self.resize == "pad":
            padded = Image.new(image.mode, (width, height))
            padded.paste(scaled, ((width - scaled_width) // 2, (height - scaled_height) // 2))
            return padded
        top, left = round((scaled_height - height) / 2), round((scaled_width - width) / 2)
        return scaled.crop((left, top, left + width, top + height))


def _brightest(image: Image.Image) -> int:
    """The value of white in a grey image of more than 8 bits, by what its file says and not by the values in it.

    Raises:
        ImageError: the file does not say, or 0 is its white.
    """
    if image.format == "PPM":  # Pillow scales these to 16 bits itself
        return 65_535
    tags = _tags(image)
    bits = int(tags.get(_BITS, (16,))[0]) if tags else 16
    if image.mode == "I" or bits > 16:
        low, high = image.getextrema()
        raise ImageError(
            f"it holds {bits}-bit integers from {low} to {high}, beyond 16 bits: what of them is white, nothing says; "
            "save it with 8 or 16 bits"
        )
    if tags and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise ImageError(f"it holds {bits}-bit grey in which 0 is white, which is not read; save it with 0 for black")
    return 2**bits - 1


def _refuse_signed(image: Image.Image) -> None:
    tags = _tags(image)
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()) and tags.get(_BITS, (8,))[0] < 32:
        raise ImageError(f"its colour space {image.mode!r} holds signed numbers, which have no conversion to a picture")


def _tags(image: Image.Image) -> Any:
    """The tags of a TIFF file, else nothing."""
    return getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}


def _conversion(image: Image.Image, mode: str, name: str, num_frames: int) -> str | None:
    """What was unusual about a file, in words."""
    words = [f"the first of {num_frames} frames"] if num_frames > 1 else []
    words += [] if image.mode == mode else [f"{image.mode} to {mode}"]
    promised = Image.registered_extensions().get(os.path.splitext(name)[1].lower())
    if promised is not None and image.format != promised and (image.format, promised) != ("MPO", "JPEG"):
        words.append(f"a {image.format} file by another name")
    return "; ".join(words) or None


def scaled_size(native: tuple[int, int], image_size: tuple[int, int], resize: str) -> tuple[int, int]:
    """Size an image is resized to before padding or cropping; its aspect ratio is kept.

    Args:
        native: (height, width) of the image.
        image_size: (height, width) of the result.
        resize: "pad" (both sides fit into the result) or "crop" (both sides cover 256/224 of it).

    Returns:
        (height, width), at least 1 each. For square crops the numbers of torchvision's ``Resize(256)``: the shorter
        side exactly, the longer one rounded down.
    """
    if resize == "crop":
        target = tuple((side * 256 + 112) // 224 for side in image_size)
        rows_decide = target[0] * native[1] >= target[1] * native[0]
    else:
        target = image_size
        rows_decide = target[0] * native[1] <= target[1] * native[0]
    if rows_decide:
        return target[0], max(1, native[1] * target[0] // native[0])
    return max(1, native[0] * target[1] // native[1]), target[1]


@contextlib.contextmanager
def quiet_decoder() -> Iterator[None]:
    """Silence Pillow's warnings while a preparation runs.

    Damaged side data (EXIF, TIFF tags) leaves the pixels whole, and for large images ``max_pixels`` is what counts.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def encode_png(pixels: bytes | np.ndarray, image_size: tuple[int, int], num_channels: int) -> bytes:
    """Lossless PNG of uint8 pixels, row by row, channels last."""
    height, width = image_size
    buffer = io.BytesIO()
    Image.frombytes("RGB" if num_channels == 3 else "L", (width, height), bytes(pixels)).save(buffer, format="PNG")
    return buffer.getvalue()
