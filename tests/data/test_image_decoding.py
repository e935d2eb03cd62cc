import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encode, random_image
from PIL import Image

from patchcert.data import decoding
from patchcert.data.decoding import Preprocessing, encode_png, scaled_size
from patchcert.errors import DatasetError, ImageError


def make(image_size=(8, 8), num_channels=3, resize="none", interpolation=None, **options):
    options = {"max_pixels": 1_000_000, **options}
    return Preprocessing(
        image_size=image_size,
        num_channels=num_channels,
        resize=resize,
        interpolation=interpolation or (None if resize == "none" else "bilinear"),
        **options,
    )


def pixels(preprocessing, data):
    shape = (*preprocessing.image_size, preprocessing.num_channels)
    return np.frombuffer(preprocessing.apply(data), np.uint8).reshape(shape)


def saved(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF", "PPM", "WEBP"])
def test_lossless_formats_come_out_exactly(format):
    image = random_image(8, 12, 3) // 64 * 64  # GIF: few enough colours for a palette
    options = {"lossless": True} if format == "WEBP" else {}
    assert (pixels(make((8, 12)), encode(image, format, **options)) == image).all()


def test_grey_and_colour_are_converted_to_the_channels_of_the_dataset():
    grey, colour = random_image(8, 8, 1), random_image(8, 8, 3)
    assert (pixels(make(), encode(grey)) == grey[..., None]).all()
    luma = (colour @ np.array([19595, 38470, 7471]) + 0x8000) >> 16  # ITU-R 601 in 16-bit fixed point
    assert (pixels(make(num_channels=1), encode(colour))[..., 0] == luma).all()


def test_alpha_is_dropped_and_palettes_are_looked_up():
    image = random_image(8, 8, 4)
    assert (pixels(make(), encode(image)) == image[..., :3]).all()
    grey = random_image(8, 8, 1)
    with_alpha = Image.merge("LA", [Image.fromarray(grey), Image.new("L", (8, 8))])
    assert (pixels(make(), saved(with_alpha, "PNG")) == grey[..., None]).all()
    colours = random_image(4, 1, 3).repeat(2, 0).repeat(8, 1)
    palette = Image.fromarray(colours).quantize(8)
    assert (pixels(make(), saved(palette, "PNG")) == np.asarray(palette.convert("RGB"))).all()
    assert (pixels(make(), saved(palette, "PNG", transparency=0)) == np.asarray(palette.convert("RGB"))).all()


def test_one_bit_and_sixteen_bit_images_are_scaled_to_the_full_range():
    bits = random_image(8, 8, 1) > 127
    assert (pixels(make(num_channels=1), saved(Image.fromarray(bits), "PNG"))[..., 0] == bits * 255).all()
    deep = np.linspace(0, 65_535, 64).astype(np.uint16).reshape(8, 8)
    for format in ("PNG", "TIFF", "PPM"):
        found = pixels(make(num_channels=1), saved(Image.fromarray(deep), format))[..., 0]
        assert (found == np.round(deep / 257)).all()


def test_cmyk_photos_become_rgb():
    cmyk = Image.fromarray(np.full((8, 8, 3), (200, 30, 90), np.uint8)).convert("CMYK")
    found = pixels(make(), saved(cmyk, "JPEG", quality=100))
    assert np.abs(found.astype(int) - (200, 30, 90)).max() <= 3


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("F", (8, 8)), "colour space 'F'"),
        (Image.new("LAB", (8, 8)), "colour space 'LAB'"),
        (Image.fromarray(np.full((8, 8), 70_000, np.int32)), "beyond 16 bits"),
    ],
)
def test_values_without_a_defined_conversion_are_refused(image, reason):
    with pytest.raises(ImageError, match=reason):
        make().apply(saved(image, "TIFF"))


def tiff(values, *, bits, photometric, sample_format=1, extra=None, colours=None):
    """A TIFF file of one strip, byte by byte: Pillow itself writes only some of the kinds it reads.

    Args:
        values: little-endian bytes of all values.
        bits: of each value of a pixel, a list.
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr, 8 LAB.
        sample_format: 1 unsigned, 2 signed, 3 floating.
        extra: kinds of the values behind the colour: 1 premultiplied opacity, 2 opacity.
        colours: the palette, 16 bits each.
    """
    tags = {256: [8], 257: [8], 258: bits, 259: [1], 262: [photometric], 273: [0], 277: [len(bits)], 278: [8]}
    tags |= {279: [len(values)], 339: [sample_format] * len(bits)}
    tags |= {338: extra} if extra else {}
    tags |= {320: colours} if colours else {}
    size = 8 + 2 + 12 * len(tags) + 4
    behind = b""
    entries = b""
    tags[273] = [size + sum(2 * len(v) for v in tags.values() if len(v) > 2)]
    for tag, found in sorted(tags.items()):
        data = struct.pack(f"<{len(found)}H", *found)
        if len(data) > 4:
            data, behind = struct.pack("<I", size + len(behind)), behind + data
        entries += struct.pack("<HHI", tag, 3, len(found)) + data.ljust(4, b"\0")
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + behind + values


GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOUR = random_image(8, 8, 3, seed=5)
OPACITY = np.full((8, 8, 1), 128, np.uint8)
HALVED = (COLOUR.astype(int) * 128 // 255).astype(np.uint8)


def wide(values, kind):
    return np.asarray(values).astype(kind).tobytes()


@pytest.mark.parametrize(
    ("data", "expected", "tolerance"),
    [
        pytest.param(tiff(GREY.tobytes(), bits=[8], photometric=1), GREY, 0, id="grey"),
        pytest.param(tiff((255 - GREY).tobytes(), bits=[8], photometric=0), GREY, 0, id="grey, white is 0"),
        pytest.param(tiff(wide(GREY.astype(int) * 257, "<u2"), bits=[16], photometric=1), GREY, 0, id="16 bits"),
        pytest.param(tiff(bytes([0b10101010] * 8), bits=[1], photometric=1), np.tile([255, 0], (8, 4)), 0, id="1 bit"),
        pytest.param(
            tiff(bytes([0b10101010] * 8), bits=[1], photometric=0), np.tile([0, 255], (8, 4)), 0, id="1 bit, 0 white"
        ),
        pytest.param(tiff(bytes([0x0F] * 32), bits=[4], photometric=1), np.tile([0, 255], (8, 4)), 0, id="4 bits"),
        # Two values of 12 bits lie in three bytes: 0 and 4095.
        pytest.param(
            tiff(bytes([0x00, 0x0F, 0xFF] * 32), bits=[12], photometric=1), np.tile([0, 255], (8, 4)), 0, id="12 bits"
        ),
        pytest.param(tiff(COLOUR.tobytes(), bits=[8] * 3, photometric=2), COLOUR, 0, id="RGB"),
        pytest.param(
            tiff(wide(COLOUR.astype(int) * 257, "<u2"), bits=[16] * 3, photometric=2), COLOUR, 0, id="RGB, 16 bits"
        ),
        pytest.param(
            tiff(np.concatenate([COLOUR, OPACITY], 2).tobytes(), bits=[8] * 4, photometric=2, extra=[2]),
            COLOUR,
            0,
            id="RGBA",
        ),
        pytest.param(
            tiff(np.concatenate([HALVED, OPACITY], 2).tobytes(), bits=[8] * 4, photometric=2, extra=[1]),
            COLOUR,
            2,
            id="RGBa",
        ),
        pytest.param(
            tiff(np.stack([GREY, OPACITY[..., 0]], 2).tobytes(), bits=[8] * 2, photometric=1, extra=[2]),
            GREY,
            0,
            id="LA",
        ),
        pytest.param(
            tiff(np.stack([GREY // 2, OPACITY[..., 0]], 2).tobytes(), bits=[8] * 2, photometric=1, extra=[1]),
            GREY,
            4,
            id="La",
        ),
        pytest.param(
            tiff(GREY.tobytes(), bits=[8], photometric=3, colours=[v * 256 for v in range(255, -1, -1)] * 3),
            255 - GREY,
            0,
            id="P",
        ),
        pytest.param(
            tiff(np.concatenate([255 - COLOUR, OPACITY * 0], 2).tobytes(), bits=[8] * 4, photometric=5),
            COLOUR,
            0,
            id="CMYK",
        ),
        pytest.param(saved(Image.fromarray(COLOUR).convert("YCbCr"), "TIFF"), COLOUR, 3, id="YCbCr"),
    ],
)
def test_every_kind_of_pixel_comes_out_right(data, expected, tolerance):
    found = pixels(make(), data).astype(int)
    expected = expected if expected.ndim == 3 else expected[..., None]
    assert np.abs(found - expected).max() <= tolerance


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(
            tiff(wide(GREY, "<i4"), bits=[32], photometric=1, sample_format=2),
            "32-bit integers from 0 to 252",
            id="I, signed",
        ),
        pytest.param(
            tiff(wide(GREY, "<u4"), bits=[32], photometric=1), "32-bit integers from 0 to 252, beyond 16 bits", id="I"
        ),
        pytest.param(
            tiff(wide(GREY, "<i2"), bits=[16], photometric=1, sample_format=2), "signed numbers", id="16 bits, signed"
        ),
        pytest.param(
            tiff(wide(GREY, "i1"), bits=[8], photometric=1, sample_format=2), "signed numbers", id="8 bits, signed"
        ),
        pytest.param(
            tiff(wide(GREY / 255, "<f4"), bits=[32], photometric=1, sample_format=3), "colour space 'F'", id="F"
        ),
        pytest.param(
            tiff(wide(GREY, "<u2"), bits=[16], photometric=0), "16-bit grey in which 0 is white", id="16 bits, 0 white"
        ),
        pytest.param(tiff(COLOUR.tobytes(), bits=[8] * 3, photometric=8), "colour space 'LAB'", id="LAB"),
        pytest.param(b"Pf\n8 8\n-1.0\n" + wide(GREY, "<f4"), "colour space 'F'", id="PFM"),
    ],
)
def test_kinds_of_pixels_without_a_defined_white_are_refused(data, reason):
    with pytest.raises(ImageError, match=reason):
        make().apply(data)


def test_a_portable_map_says_what_its_white_is():
    for white in (100, 255, 1023, 65_535):
        values = np.linspace(0, white, 64).round().astype(int).reshape(8, 8)
        data = b"P5\n8 8\n%d\n" % white + wide(values, ">u2" if white > 255 else "u1")
        found = pixels(make(num_channels=1), data)[..., 0]
        assert found.max() == 255 and np.abs(found - values * 255 / white).max() <= 1


def test_no_mode_of_pillow_passes_unseen():
    """A new mode has to be decided upon."""
    known = decoding._DIRECT_MODES | decoding._COLOUR_MODES | decoding._SIXTEEN_BIT_MODES
    known |= decoding._MULTIPLIED_MODES.keys() | {"I", "F", "LAB"}
    assert set(Image.MODES) <= known


@pytest.mark.parametrize(
    ("format", "options"),
    [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("MPO", {"quality": 95})],
)
def test_of_several_frames_the_first_is_taken_and_that_is_said(format, options):
    frames = [Image.fromarray(random_image(8, 8, 3, seed=seed) // 64 * 64) for seed in range(3)]
    several = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
    one = saved(frames[0], "JPEG" if format == "MPO" else format, **options)
    found, conversion = make().convert(several)
    assert "the first of 3 frames" in conversion
    assert found == make().convert(one)[0] and "frames" not in (make().convert(one)[1] or "")


@pytest.mark.parametrize("data", [None, b""])
def test_no_bytes_are_refused(data):
    with pytest.raises(ImageError, match="no bytes"):
        make().apply(data)


@pytest.mark.parametrize("data", [b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", bytes(1000)])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(ImageError, match="no image in a format"):
        make().apply(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_cut_off_file_is_refused_wherever_it_is_cut(format):
    data = encode(random_image(64, 64), format)
    for length in np.linspace(1, len(data) * 0.95, 25).astype(int):
        with pytest.raises(ImageError, match=r"cannot be decoded|no image"):
            make((64, 64)).apply(data[:length])


def test_a_damaged_png_is_refused():
    data = bytearray(encode(random_image(64, 64)))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ImageError, match="cannot be decoded"):
        make((64, 64)).apply(bytes(data))


def png_header(height, width):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(9_000, 12_000), (60_000, 60_000), (1_001, 1_000)])
def test_decompression_bombs_are_refused_before_they_are_decoded(size):
    with pytest.raises(ImageError, match="more than max_pixels 1,000,000"):
        make(resize="pad").apply(png_header(*size))


def test_a_thin_image_may_not_grow_beyond_the_limit():
    with pytest.raises(ImageError, match=r"1x9000 pixels and would become 256x2304000, more than max_pixels"):
        make((224, 224), resize="crop").apply(encode(random_image(1, 9_000)))


def test_another_size_is_refused_without_resizing():
    with pytest.raises(ImageError, match="it is 8x9 pixels, but resize 'none' needs 8x8"):
        make().apply(encode(random_image(8, 9)))


@pytest.mark.parametrize(("encoding", "format"), [("lossless", "JPEG"), ("lossless", "WEBP"), ("jpeg", "PNG")])
def test_another_variant_is_refused(encoding, format):
    with pytest.raises(DatasetError, match=f"images are {format}") as caught:
        make(encoding=encoding).apply(encode(random_image(8, 8), format))
    assert not isinstance(caught.value, ImageError)


SIDES = st.integers(1, 400)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(height=SIDES, width=SIDES, out_height=SIDES, out_width=SIDES)
def test_padding_fits_and_cropping_covers(height, width, out_height, out_width):
    fitted = scaled_size((height, width), (out_height, out_width), "pad")
    assert fitted[0] <= out_height and fitted[1] <= out_width
    assert fitted[0] == out_height or fitted[1] == out_width
    covered = scaled_size((height, width), (out_height, out_width), "crop")
    assert covered[0] >= out_height and covered[1] >= out_width
    for scaled in (fitted, covered):
        # The shorter side is rounded down by less than a pixel, but stays one at least.
        assert min(scaled) == 1 or abs(scaled[0] * width - scaled[1] * height) < max(height, width)


@pytest.mark.parametrize("native", [(375, 500), (500, 375), (256, 256), (480, 333), (100, 1001)])
def test_square_crops_measure_what_the_usual_evaluation_does(native):
    short, long = sorted(native)
    height, width = scaled_size(native, (224, 224), "crop")
    assert sorted((height, width)) == [256, int(256 * long / short)]
    assert (height <= width) == (native[0] <= native[1])


def test_crop_is_the_centre_of_the_resized_image():
    image = random_image(60, 90)
    expected = Image.fromarray(image).resize((384, 256), Image.Resampling.BICUBIC).crop((80, 16, 304, 240))
    found = pixels(make((224, 224), resize="crop", interpolation="bicubic"), encode(image))
    assert (found == np.asarray(expected)).all()


def test_pad_centres_the_image_on_zeros_in_non_square_results():
    image = np.maximum(random_image(20, 40), 1)
    found = pixels(make((30, 20), resize="pad"), encode(image))
    assert (found[10:20] == np.asarray(Image.fromarray(image).resize((20, 10), Image.Resampling.BILINEAR))).all()
    assert not found[:10].any() and not found[20:].any()


def test_stretch_fills_non_square_results():
    image = random_image(20, 40)
    found = pixels(make((30, 10), resize="stretch"), encode(image))
    assert (found == np.asarray(Image.fromarray(image).resize((10, 30), Image.Resampling.BILINEAR))).all()


def test_threads_decode_to_the_same_bytes():
    files = [encode(random_image(90, 70, seed=seed), "JPEG") for seed in range(40)]
    preprocessing = make((32, 48), resize="crop")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(preprocessing.apply, files)) == [preprocessing.apply(data) for data in files]


def test_png_round_trip():
    image = random_image(5, 9)
    assert (pixels(make((5, 9)), encode_png(image.tobytes(), (5, 9), 3)) == image).all()
