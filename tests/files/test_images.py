"""One reader of images for training, evaluation and the demos."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from lbvq.data.clip_mapper import read_image as read_for_training
from lbvq.evaluation import report
from lbvq.files import images
from lbvq.files.images import image_size, read_image
from lbvq.video.reader import VideoError, read_video


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and ends there."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_keep_their_upper_half_for_training_and_demo(tmp_path, suffix):
    values = np.array([[0, 255, 256, 40000, 65535]], np.uint16)
    path = tmp_path / f"deep{suffix}"
    if suffix == ".pgm":  # which Pillow before 11.1 does not write with 16 bits
        path.write_bytes(b"P5 5 1 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    want = np.repeat(np.array([[0, 0, 1, 156, 255]], np.uint8)[:, :, None], 3, axis=2)
    assert np.array_equal(read_for_training(str(path)), want)
    assert np.array_equal(read_video(path)[0], want)


@pytest.mark.parametrize("values", [np.ones((2, 2), np.float32), np.full((2, 2), 70000, np.int32)])
def test_pixels_without_a_known_white_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(OSError, match=r"a\.tif of video 7: pixels of .* have no known white"):
        read_image(tmp_path / "a.tif", where="video 7")


def test_an_image_is_turned_upright_and_its_size_with_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == (6, 4) == read_image(tmp_path / "a.jpg").shape[:2]


def test_channels_come_in_the_asked_order(tmp_path):
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, 0].tolist() == [1, 2, 3]
    assert read_image(tmp_path / "a.png", "BGR")[0, 0].tolist() == [3, 2, 1]
    with pytest.raises(ValueError, match=r"got 'RGBA'; set INPUT\.FORMAT"):
        read_image(tmp_path / "a.png", "RGBA")


def test_the_limit_of_pixels_is_checked_before_decoding(tmp_path, monkeypatch):
    (tmp_path / "huge.png").write_bytes(png_header(100_000, 100_000))
    with pytest.raises(OSError, match=r"huge\.png"):
        read_image(tmp_path / "huge.png")
    monkeypatch.setattr(images, "MAX_IMAGE_PIXELS", 11)
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    for read in (read_image, image_size):
        with pytest.raises(OSError, match=r"a\.png: 4 x 3 pixels are above the limit of 11"):
            read(tmp_path / "a.png")


def broken_files(whole: bytes) -> dict[str, bytes]:
    damaged = bytearray(whole)
    damaged[60] ^= 0xFF
    return {
        "empty": b"",
        "text": b"no image",
        "cut": whole[: len(whole) // 2],
        "header": png_header(9, 9),
        "flipped": bytes(damaged),
    }


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "header", "flipped"])
def test_a_damaged_image_is_an_os_error_that_names_it(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(broken_files((tmp_path / "a.png").read_bytes())[kind])
    with pytest.raises(OSError, match=r"Cannot read image .*a\.png of video 3: ."):
        read_image(tmp_path / "a.png", where="video 3")
    with pytest.raises(VideoError, match=r"a\.png"):
        read_video(tmp_path / "a.png", allow_truncated=True)


def test_a_missing_image_says_where_to_look(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No image .*a\.png of video 3; .*DETECTRON2_DATASETS"):
        read_image(tmp_path / "a.png", where="video 3")


def test_a_file_of_several_pictures_is_refused(tmp_path):
    frames = [Image.new("L", (4, 4), value) for value in (0, 99)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(OSError, match=r"holds 2 pictures"):
        read_image(tmp_path / "a.tif")


def test_every_reader_of_images_is_the_one():
    assert read_for_training is read_image and report.read_image is read_image


def test_a_large_image_of_few_bytes_is_refused_and_a_smaller_one_is_read(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "blank.png")
    assert read_image(tmp_path / "blank.png").shape == (100, 100, 3)
    monkeypatch.setattr(images, "_FREE_PIXELS", 9_999)
    monkeypatch.setattr(images, "_MAX_PIXELS_PER_BYTE", 50)
    with pytest.raises(OSError, match=r"blank\.png: 100 x 100 pixels in \d+ bytes are no picture but a bomb"):
        read_image(tmp_path / "blank.png")
    noise = np.random.default_rng(0).integers(0, 255, (100, 100), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    assert read_image(tmp_path / "noise.png").shape == (100, 100, 3)


def test_a_length_that_a_file_claims_asks_for_no_memory(tmp_path):
    """What follows the pixels of a PNG claims 4 GB; Pillow would ask for them at once."""
    path = tmp_path / "a.png"
    Image.new("L", (64, 48), 200).save(path)
    data = path.read_bytes()
    start = data.index(b"IDAT") - 4
    path.write_bytes(data[:start] + struct.pack(">I", 2**32 - 2**20) + data[start + 4 :])
    tracemalloc.start()
    try:
        try:
            assert read_image(path).shape == (48, 64, 3)
        except OSError as error:
            assert "a.png" in str(error)
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()
