import io

import numpy as np
import pytest
from PIL import Image

from dynadapt.data import decode, transforms
from dynadapt.errors import DataError


def save(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_png_decodes_exactly(photo, encode):
    assert np.array_equal(decode.decode(encode(photo)), photo)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "YCbCr"])
def test_every_mode_becomes_rgb(photo, mode):
    kind = {"CMYK": "JPEG", "YCbCr": "JPEG"}.get(mode, "PNG")
    out = decode.decode(save(Image.fromarray(photo).convert(mode), kind))
    assert out.dtype == np.uint8
    assert out.shape == photo.shape
    reference = np.asarray(Image.fromarray(photo).convert(mode).convert("RGB"), int)
    assert np.abs(out - reference).mean() < (3 if kind == "JPEG" else 1e-9)


def test_transparency_is_dropped(photo):
    alpha = np.full((30, 40, 1), 9, np.uint8)
    picture = Image.fromarray(np.concatenate([photo, alpha], -1))
    assert np.array_equal(decode.decode(save(picture, "PNG")), photo)
    palette = Image.fromarray(photo).quantize(8)
    transparent = save(palette, "PNG", transparency=bytes(range(8)))
    assert np.array_equal(decode.decode(transparent), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_picture_stays(kind):
    first, second = (Image.new("RGB", (6, 4), (value,) * 3) for value in (255, 0))
    out = decode.decode(save(first, kind, save_all=True, append_images=[second]))
    assert np.array_equal(out, np.full((4, 6, 3), 255))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_they_were_held(kind, orientation):
    upright = np.kron([[200, 60, 110], [20, 240, 150]], np.ones((16, 16))).astype(np.uint8)
    turns = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud}
    turns |= {5: np.transpose, 6: np.rot90, 7: lambda a: np.rot90(a, 2).T}
    turns[8] = lambda a: np.rot90(a, -1)
    held = Image.fromarray(np.ascontiguousarray(turns[orientation](upright))).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"tiffinfo": {0x0112: orientation}} if kind == "TIFF" else {"exif": exif}
    file = save(held, kind, **options)
    for image in (decode.decode(file, orient=True),
                  transforms.pipeline("")({"image": file, "orient": True})["image"]):  # fmt: skip
        assert image.shape == (32, 48, 3)
        assert np.abs(image[8::16, 8::16, 0].astype(int) - upright[8::16, 8::16]).max() < 9
    if kind != "TIFF":  # which Pillow itself turns
        assert decode.decode(file).shape == (held.height, held.width, 3)
        assert transforms.pipeline("")({"image": file})["image"].shape[:2] == held.size[::-1]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("cut", [0, 1, 7, 12, 20])
def test_a_malformed_block_turns_nothing_and_stops_nothing(photo, cut):
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes()[: 6 + cut]
    for kind in ("JPEG", "PNG"):
        out = decode.decode(save(Image.fromarray(photo), kind, exif=block), orient=True)
        assert out.shape == photo.shape
    other = block.replace(b"MM", b"XY") + b"\xff" * 9
    assert decode.decode(save(Image.fromarray(photo), "JPEG", exif=other), orient=True).size


@pytest.mark.parametrize(
    ("kind", "dtype", "values", "expected"),
    [
        ("PNG", np.uint16, [0, 2570, 32896, 65535], [0, 10, 128, 255]),
        ("TIFF", np.uint16, [0, 2570, 32896, 65535], [0, 10, 128, 255]),
        ("PPM", np.uint16, [0, 2570, 32896, 65535], [0, 10, 128, 255]),
        ("PPM", np.uint16, [0, 0, 128, 255], [0, 0, 0, 1]),  # dark, and 16 bits all the same
        ("TIFF", np.int32, [0, 2570, 32896, 65535], [0, 10, 128, 255]),
        ("TIFF", np.int32, [0, 10, 128, 255], [0, 10, 128, 255]),
        ("TIFF", np.int32, [-100, 0, 100, 155], [0, 100, 200, 255]),
        ("TIFF", np.int32, [10**6, 10**6 + 20, 10**6 + 40, 10**6 + 51], [0, 100, 200, 255]),
        ("TIFF", np.float32, [0, 0.1, 0.5, 1], [0, 26, 128, 255]),
        ("TIFF", np.float32, [0, 0.1, 0.2, 0.5], [0, 26, 51, 128]),
        ("TIFF", np.float32, [0, 1000, 2000, 2550], [0, 100, 200, 255]),
        ("TIFF", np.float32, [-1, 0, np.nan, 1], [0, 128, 128, 255]),
        ("TIFF", np.float32, [np.inf, -np.inf, 2, 4], [0, 0, 128, 255]),
        ("TIFF", np.float32, [7, 7, 7, 7], [0, 0, 0, 0]),
    ],
)
def test_deep_grey_is_scaled_not_cut(kind, dtype, values, expected):
    out = decode.decode(save(Image.fromarray(np.array([values], dtype)), kind))
    assert out.shape == (1, 4, 3) and out.dtype == np.uint8
    assert out[0, :, 0].tolist() == out[0, :, 2].tolist() == expected


def test_arrays_become_rgb(photo):
    assert np.array_equal(decode.decode(photo), photo)
    assert np.array_equal(decode.decode(photo[..., 0]), np.repeat(photo[..., :1], 3, -1))
    assert np.array_equal(decode.decode(photo[..., :1]), np.repeat(photo[..., :1], 3, -1))
    assert np.array_equal(decode.decode(np.concatenate([photo, photo[..., :1]], -1)), photo)
    for wrong in (photo.astype(np.float32), photo[..., :2], photo[:0], photo[None]):
        with pytest.raises(DataError, match="train.3. is .* must be uint8"):
            decode.decode(wrong, "train[3]")


def test_broken_files_are_named(photo, encode, monkeypatch):
    whole = encode(photo, "JPEG")
    for broken in (b"", b"not an image", whole[: len(whole) // 2], encode(photo)[:60]):
        with pytest.raises(DataError, match="cannot decode cats/7.jpg"):
            transforms.pipeline("")({"image": broken, "name": "cats/7.jpg"})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(DataError, match="cats/8.jpg: it has more than 64,000,000 pixels"):
        decode.decode(whole, "cats/8.jpg")


def test_formats_that_run_programs_are_no_images():
    assert not {".eps", ".ps", ".pdf", ".wmf", ".mpg", ".h5"} & decode.suffixes()
    with pytest.raises(DataError, match="cannot decode"):
        decode.decode(save(Image.new("RGB", (4, 4)), "EPS"))
    assert {".jpg", ".jpe", ".jfif", ".png", ".tga", ".pbm", ".tif"} <= decode.suffixes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "RGB", "RGBA"])
def test_numbers_are_what_is_stored(mode):
    rng = np.random.default_rng(0)
    shape, top, dtype = {
        "1": ((5, 7), 2, bool),
        "L": ((5, 7), 256, np.uint8),
        "LA": ((5, 7, 2), 256, np.uint8),
        "P": ((5, 7), 256, np.uint8),
        "I;16": ((5, 7), 65536, np.uint16),
        "RGB": ((5, 7, 3), 256, np.uint8),
        "RGBA": ((5, 7, 4), 256, np.uint8),
    }[mode]
    values = rng.integers(0, top, shape).astype(dtype)
    picture = Image.fromarray(values)
    if mode == "P":
        picture.putpalette(rng.integers(0, 256, 768, np.uint8).tobytes())
    assert picture.mode == mode
    out = decode.numbers(save(picture, "PNG"))
    wanted = {"LA": (..., 0), "RGBA": (..., slice(3))}.get(mode, ...)
    assert np.array_equal(out, values[wanted])
    assert out.dtype == (np.uint16 if mode == "I;16" else np.uint8)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "GIF"])
def test_numbers_are_read_from_png_alone(photo, kind):
    with pytest.raises(DataError, match="cannot decode masks/1.png"):
        decode.numbers(save(Image.fromarray(photo), kind), "masks/1.png")


def test_dimensions_are_those_that_are_stored(photo, encode):
    turned = Image.Exif()
    turned[0x0112] = 6
    jpeg = save(Image.fromarray(photo), "JPEG", exif=turned)
    assert decode.dimensions(jpeg) == decode.dimensions(encode(photo)) == photo.shape[:2]
    with pytest.raises(DataError, match="cannot decode x"):
        decode.dimensions(b"no image", "x")
