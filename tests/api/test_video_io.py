from __future__ import annotations

import logging
import pickle
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from lbvq.video.reader import VideoError, natural_key, read_image, read_video
from lbvq.video.structure import is_cut_off


def gray_frames(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Frames whose brightness tells their index, with a bright block in the upper left corner."""
    frames = []
    for index in range(count):
        frame = np.full((height, width, 3), 8 * index, dtype=np.uint8)
        frame[: height // 4, : width // 4] = 250
        frames.append(frame)
    return frames


def write(path: Path, frames: list[np.ndarray], codec: str = "libx264", rate: int = 25, options=None, pts=None) -> Path:
    """Encode with PyAV alone, so that reading is tested independently of our writer."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the same file every time
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if pts is not None:
                picture.pts = pts[index]
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def indices(frames) -> list[int]:
    """The indices that the brightness of decoded frames tells."""
    return [round(float(frame[-8:, -8:].mean()) / 8) for frame in frames]


def save_images(folder: Path, names: list[str], size: tuple[int, int] = (8, 6)) -> None:
    folder.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        Image.new("RGB", size, (index * 10, 0, 0)).save(folder / name)


@pytest.mark.parametrize("name, codec", [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4")])
def test_a_video_file_is_a_sequence_of_rgb_frames(tmp_path, name, codec):
    video = read_video(write(tmp_path / name, gray_frames(20), codec))
    assert len(video) == 20 and video.size == (48, 64)
    assert video[0].shape == (48, 64, 3) and video[0].dtype == np.uint8
    assert indices(video) == list(range(20))
    assert video.frame_rate == pytest.approx(25, rel=1e-3)
    with pytest.raises(IndexError, match="frame 20 does not exist"):
        video[20]
    with pytest.raises(IndexError, match="frame -21 does not exist"):
        video[-21]


def test_frames_can_be_read_in_any_order(tmp_path):
    video = read_video(write(tmp_path / "a.mp4", gray_frames(30)))
    order = [3, 4, 2, 29, 0, 12, 11, 1, -1]
    assert indices([video[index] for index in order]) == [3, 4, 2, 29, 0, 12, 11, 1, 29]


def test_reading_in_order_decodes_the_file_once_and_keeps_few_frames(tmp_path, monkeypatch):
    video = read_video(write(tmp_path / "a.mp4", gray_frames(30)))
    opened = []
    monkeypatch.setattr(av, "open", lambda *args, _open=av.open, **keys: opened.append(args) or _open(*args, **keys))
    assert indices(video[index] for index in range(30)) == list(range(30))
    assert opened == [] and len(video._recent) <= 8
    assert indices([video[25]]) == [25]  # inside the window
    assert opened == []
    assert indices([video[3]]) == [3]
    assert len(opened) == 1


def test_slices_are_views_that_decode_nothing(tmp_path):
    video = read_video(write(tmp_path / "a.mp4", gray_frames(20)))
    part = video[4:16:3]
    assert len(part) == 4 and indices(part) == [4, 7, 10, 13] and part.size == (48, 64)
    assert part.frame_rate == pytest.approx(25 / 3, rel=1e-3)
    assert indices(part[::-1]) == [13, 10, 7, 4] and indices([part[-1]]) == [13]
    assert len(video[5:5]) == 0 and list(video[5:5]) == []


def test_drawing_into_a_frame_does_not_change_what_is_read_next(tmp_path):
    video = read_video(write(tmp_path / "a.mp4", gray_frames(3)))
    video[1][:] = 255
    assert indices([video[1]]) == [1]


def test_an_open_video_can_be_sent_to_another_process_and_closed(tmp_path):
    video = read_video(write(tmp_path / "a.mp4", gray_frames(5)))
    copy = pickle.loads(pickle.dumps(video))
    with video:
        assert indices([video[3]]) == [3]
    assert indices([video[1], copy[2]]) == [1, 2]


def test_uneven_frame_times_are_kept(tmp_path):
    ticks = [0, 1, 2, 10, 11, 30]
    video = read_video(write(tmp_path / "a.mp4", gray_frames(6), pts=ticks))
    assert video.timestamps == pytest.approx(np.array(ticks) / 25, abs=1e-6)
    assert video.frame_rate == pytest.approx(5 / (30 / 25))


@pytest.mark.parametrize(
    "matrix, size, corner",
    [
        ((0, 1, -1, 0), (64, 48), (0, -1)),  # quarter turn clockwise: upper left goes to upper right
        ((-1, 0, 0, -1), (48, 64), (-1, -1)),
        ((0, -1, 1, 0), (64, 48), (-1, 0)),
        ((-1, 0, 0, 1), (48, 64), (0, -1)),  # mirrored
        ((1, 0, 0, 1), (48, 64), (0, 0)),
    ],
)
def test_recordings_of_a_turned_phone_are_shown_upright(tmp_path, matrix, size, corner):
    path = write(tmp_path / "a.mp4", gray_frames(3))
    data = bytearray(path.read_bytes())
    start = data.find(b"tkhd") + 4 + 40  # the display matrix in the track header
    a, b, c, d = (value * 65536 for value in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    video = read_video(path)
    assert video.size == size and video[0].shape[:2] == size
    assert video[0][corner].mean() > 200  # the bright block


def noise_frames(count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize(
    "name, codec, options",
    [
        ("a.mp4", "libx264", {"movflags": "+faststart"}),
        ("a.mkv", "libx264", {}),
        ("a.webm", "libvpx-vp9", {}),
        ("a.avi", "mpeg4", {}),
        ("a.ts", "libx264", {}),
    ],
)
def test_a_cut_off_file_is_refused_or_read_as_far_as_possible(tmp_path, caplog, name, codec, options):
    path = write(tmp_path / name, noise_frames(40), codec, options=options)
    whole = list(read_video(path))
    data = path.read_bytes()
    cut = len(data) * 6 // 10
    path.write_bytes(data[: cut + (cut % 188 == 0)])  # a transport stream ends with a whole packet, or is cut off
    video = read_video(path)
    with pytest.raises(VideoError, match=r"cut off: .* after \d+ readable frames; .*allow_truncated"):
        len(video)
    with caplog.at_level(logging.WARNING):
        video = read_video(path, allow_truncated=True)
        count = len(video)
        frames = list(video)
    assert 1 <= count < 40 and len(frames) == count
    assert all(np.array_equal(got, want) for got, want in zip(frames, whole, strict=False))
    assert len([record for record in caplog.records if "only these frames" in record.message]) == 1


@pytest.mark.parametrize("cut", [0.3, 0.45, 0.61, 0.8, 0.97])
def test_a_transport_stream_cut_inside_a_packet_never_gives_a_half_frame(tmp_path, cut):
    path = write(tmp_path / "a.ts", noise_frames(40))
    whole = list(read_video(path))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut) // 188 * 188 + 100])
    with pytest.raises(VideoError, match="cut off"):
        len(read_video(path))
    frames = list(read_video(path, allow_truncated=True))
    assert 0 < len(frames) < 40
    assert all(np.array_equal(got, want) for got, want in zip(frames, whole, strict=False))


@pytest.mark.parametrize("name, codec", [("a.mp4", "libx264"), ("a.avi", "mpeg4")])
def test_a_file_damaged_in_the_middle_is_refused_or_read_up_to_there(tmp_path, name, codec):
    path = write(tmp_path / name, noise_frames(40), codec)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes((value * 7 + 13) % 256 for value in data[middle : middle + 3000])
    path.write_bytes(data)
    with pytest.raises(VideoError, match="damaged"):
        list(read_video(path))
    assert 0 < len(read_video(path, allow_truncated=True)) < 40


def test_cutting_only_the_index_at_the_end_loses_nothing(tmp_path):
    path = write(tmp_path / "a.mkv", gray_frames(10))
    path.write_bytes(path.read_bytes()[:-20])
    assert indices(read_video(path)) == list(range(10))


def test_an_mp4_without_its_index_is_refused_with_the_reason(tmp_path):
    path = write(tmp_path / "a.mp4", gray_frames(10))
    data = path.read_bytes()
    path.write_bytes(data[: data.find(b"moov") - 4])
    with pytest.raises(VideoError, match="recording was cut off"):
        read_video(path, allow_truncated=True)


@pytest.mark.parametrize("content", [b"", b"no video at all" * 40])
def test_files_that_are_no_videos_are_refused(tmp_path, content):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"a.mp4 cannot be opened as a video"):
        read_video(path)


def test_sound_without_pictures_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="no video stream"):
        read_video(path)


def test_missing_things_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for source, reason in [("x.mp4", "no file or folder"), ("empty", "holds no image"), ("x*.jpg", "no file matches")]:
        with pytest.raises(FileNotFoundError, match=reason):
            read_video(tmp_path / source)
    with pytest.raises(FileNotFoundError, match="at least one frame"):
        read_video([])


def test_folders_patterns_and_lists_are_read_in_natural_order(tmp_path):
    names = ["f1.png", "f2.png", "f10.png", "f11.png"]
    save_images(tmp_path / "v", names)
    (tmp_path / "v" / "notes.txt").write_text("not an image")
    for source in (tmp_path / "v", str(tmp_path / "v" / "f*.png"), [tmp_path / "v" / name for name in names]):
        video = read_video(source)
        assert [int(frame[0, 0, 0]) for frame in video] == [0, 10, 20, 30]
        assert video.size == (6, 8) and video.timestamps is None and video.frame_rate is None
    single = read_video(tmp_path / "v" / "f2.png")
    assert len(single) == 1 and single[0].shape == (6, 8, 3)
    assert len(read_video(str(tmp_path / "v" / "f10*"))) == 1


def test_natural_order_compares_numbers_as_numbers():
    names = ["b1.png", "a10.png", "a9.png", "10.png", "9.png", "a9b.png"]
    assert [path.name for path in sorted(map(Path, names), key=natural_key)] == [
        "9.png",
        "10.png",
        "a9.png",
        "a9b.png",
        "a10.png",
        "b1.png",
    ]


def test_frames_of_another_size_are_named_before_anything_is_read(tmp_path):
    save_images(tmp_path / "v", ["0.png", "1.png"])
    save_images(tmp_path / "v", ["2.png"], size=(8, 7))
    with pytest.raises(VideoError, match=r"2\.png is 7 x 8, .*0\.png is 6 x 8"):
        read_video(tmp_path / "v")


def test_a_size_change_inside_a_file_names_the_frame(tmp_path):
    first = write(tmp_path / "a.h264", gray_frames(5))
    second = write(tmp_path / "b.h264", gray_frames(5, 64, 80))
    first.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(VideoError, match=r"frame \d+ of .* is 64 x 80, the first is 48 x 64"):
        list(read_video(first))


def test_images_are_turned_upright_by_their_exif_orientation(tmp_path):
    image = Image.new("RGB", (8, 6))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned; show a quarter turn clockwise
    image.putpixel((0, 0), (255, 255, 255))
    image.save(tmp_path / "a.png", exif=exif)
    video = read_video(tmp_path / "a.png")
    assert video.size == (8, 6)
    assert video[0].shape == (8, 6, 3) and video[0][0, -1].tolist() == [255, 255, 255]


def test_gray_transparent_palette_and_deep_images_become_rgb(tmp_path):
    Image.new("L", (4, 3), 77).save(tmp_path / "gray.png")
    Image.new("RGBA", (4, 3), (10, 20, 30, 128)).save(tmp_path / "alpha.png")
    Image.new("RGB", (4, 3), (10, 20, 30)).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(np.full((3, 4), 40000, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "gray.png")[0, 0].tolist() == [77, 77, 77]
    assert read_image(tmp_path / "alpha.png")[0, 0].tolist() == [10, 20, 30]
    assert read_image(tmp_path / "palette.png").shape == (3, 4, 3)
    assert read_image(tmp_path / "deep.png")[0, 0].tolist() == [40000 >> 8] * 3


def test_a_cut_off_image_is_named_or_ends_the_video(tmp_path, caplog):
    folder = tmp_path / "v"
    folder.mkdir()
    for index, frame in enumerate(noise_frames(3)):
        Image.fromarray(frame).save(folder / f"{index}.jpg")
    broken = folder / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:700])
    with pytest.raises(VideoError, match=r"Cannot read image .*1\.jpg"):
        list(read_video(folder))
    assert len(read_video(folder, allow_truncated=True)) == 1
    assert "only the 1 frames before it are used" in caplog.text
    (folder / "0.jpg").write_bytes(b"nothing")
    with pytest.raises(VideoError, match=r"Cannot read image .*0\.jpg"):
        read_video(folder, allow_truncated=True)


def test_one_frame_portrait_and_odd_sizes_are_read(tmp_path):
    video = read_video(write(tmp_path / "one.mp4", gray_frames(1, 96, 54)))
    assert len(video) == 1 and video.size == (96, 54) and video.frame_rate is None
    odd = read_video(write(tmp_path / "odd.webm", gray_frames(2, 45, 63), "libvpx-vp9"))
    assert odd.size == (45, 63) and len(odd) == 2


def test_an_avi_that_lacks_its_last_four_bytes_is_cut_off(tmp_path):
    path = write(tmp_path / "a.avi", noise_frames(10), "mpeg4")
    assert not is_cut_off(path)
    path.write_bytes(path.read_bytes()[:-4])
    assert is_cut_off(path)
