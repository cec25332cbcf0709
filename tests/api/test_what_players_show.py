"""What is read of a file is what a player shows of it; whatever is no video is refused by name."""

from __future__ import annotations

import os
import struct
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image, TiffImagePlugin
from small_videos import LEVELS, film, grey, levels, pictures

from lbvq.video import container
from lbvq.video import frames as video_frames
from lbvq.video.reader import VideoError, read_video

# ---- which pictures


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def with_cover(data: bytes, *, first: bool, only: bool = False) -> bytes:
    """An mp4 whose index, at its end, names a cover picture before or after the film, or instead of it."""
    file = BytesIO()
    Image.new("RGB", (32, 32), (0, 255, 0)).save(file, "JPEG")
    cover = box(b"covr", box(b"data", struct.pack(">II", 13, 0) + file.getvalue()))
    handler = box(b"hdlr", struct.pack(">II4s4sII", 0, 0, b"mdir", b"appl", 0, 0) + b"\0")
    user_data = box(b"udta", box(b"meta", bytes(4) + handler + box(b"ilst", cover)))
    start = data.index(b"moov") - 4
    size = struct.unpack(">I", data[start : start + 4])[0]
    head, rest = data[start + 8 : start + 8 + 108], data[start + 8 + 108 : start + size]
    assert head[4:8] == b"mvhd"
    tracks = [] if only else [rest]
    return data[:start] + box(b"moov", head + b"".join([user_data, *tracks] if first else [*tracks, user_data]))


@pytest.mark.parametrize("first", [True, False])
def test_a_cover_picture_is_not_the_film(tmp_path, first):
    path = film(tmp_path / "a.mp4")
    path.write_bytes(with_cover(path.read_bytes(), first=first))
    with av.open(str(path)) as opened:
        assert len(opened.streams.video) == 2
    video = read_video(path)
    assert levels(video) == LEVELS and video.size == (48, 64)


def test_a_cover_picture_alone_is_no_film(tmp_path):
    path = film(tmp_path / "song.m4a", format="mp4")
    path.write_bytes(with_cover(path.read_bytes(), first=True, only=True))
    with pytest.raises(VideoError, match=r"song\.m4a holds only a picture, such as a cover"):
        read_video(path)


def test_of_several_films_the_best_is_read_and_said(tmp_path, caplog):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as target:
        streams = [target.add_stream("libx264", rate=10) for _ in range(2)]
        streams[1].disposition = Disposition.default.value
        for stream, side in zip(streams, (32, 128), strict=True):
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
        for _ in range(10):
            for stream, side in zip(streams, (32, 128), strict=True):
                noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
                target.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        for stream in streams:
            target.mux(stream.encode(None))
    assert read_video(path).size == (128, 128)
    assert "two.mkv holds 2 video streams; number 1 is read" in caplog.text


def test_an_edit_list_leaves_out_frames(tmp_path):
    path = film(tmp_path / "a.mp4")
    data = bytearray(path.read_bytes())
    start = data.index(b"elst") + 12  # duration in thousandths, first time in ticks, speed
    with av.open(str(path)) as opened:
        ticks = int(Fraction(1, 10) / opened.streams.video[0].time_base)
    data[start : start + 8] = struct.pack(">Ii", 300, ticks)
    path.write_bytes(data)
    assert levels(read_video(path)) == LEVELS[1:4]


@pytest.mark.parametrize("ratio, size", [(Fraction(2), (48, 128)), (Fraction(3, 4), (64, 64)), (Fraction(1), (48, 64))])
def test_pixels_that_are_not_square_are_stretched_as_players_do(tmp_path, caplog, ratio, size):
    video = read_video(film(tmp_path / "a.mp4", ratio=ratio))
    assert video.size == size == video[1].shape[:2] and levels(video) == LEVELS
    assert caplog.text.count("made square") == (ratio != 1)  # once, however often the file is opened


def test_a_ratio_that_is_broken_is_ignored_and_said(tmp_path, caplog):
    assert read_video(film(tmp_path / "a.mp4", ratio=Fraction(5))).size == (48, 64)
    assert "they are taken as square" in caplog.text


@pytest.mark.parametrize("curve, is_said", [(16, True), (18, True), (1, False)])
def test_colours_that_will_look_pale_are_said(tmp_path, caplog, curve, is_said):
    with av.open(str(tmp_path / "a.mp4"), "w") as target:
        stream = target.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.color_trc = curve
        target.mux(stream.encode(av.VideoFrame.from_ndarray(grey(80), format="rgb24")))
        target.mux(stream.encode(None))
    read_video(tmp_path / "a.mp4")
    assert ("its colours look paler" in caplog.text) == is_said


# ---- images that move


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "wrong_suffix.mp4"])
def test_an_animated_image_is_a_video_with_its_times(tmp_path, name):
    kind = {"a.gif": "GIF", "a.webp": "WEBP", "a.png": "PNG", "wrong_suffix.mp4": "WEBP"}[name]
    first, *rest = pictures()
    durations = [100, 100, 300, 200, 100]
    first.save(tmp_path / name, kind, save_all=True, append_images=rest, duration=durations)
    video = read_video(tmp_path / name)
    assert levels(video) == LEVELS and levels([video[3], video[1]]) == [160, 80]
    assert video.timestamps == pytest.approx([0, 0.1, 0.2, 0.5, 0.7])


def test_a_gif_without_times_runs_as_in_browsers(tmp_path):
    first, *rest = pictures()
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=0)
    assert read_video(tmp_path / "a.gif").frame_rate == pytest.approx(10)


def test_the_picture_for_programs_without_animation_is_left_out(tmp_path):
    first, *rest = pictures()
    first.save(tmp_path / "a.png", save_all=True, append_images=rest, default_image=True, duration=100)
    assert levels(read_video(tmp_path / "a.png")) == LEVELS[1:]


def test_the_pages_of_a_tiff_are_frames_and_its_preview_is_not(tmp_path):
    deep = [Image.fromarray(np.full((48, 64), level * 256, dtype=np.uint16)) for level in LEVELS]
    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "a.tif"), new=True) as file:
        for page in deep:
            page.save(file, format="TIFF")
            file.newFrame()
        Image.new("L", (8, 6)).save(file, format="TIFF", tiffinfo={254: 1})
    video = read_video(tmp_path / "a.tif")
    assert levels(video) == LEVELS and video.timestamps is None and video.frame_rate is None


def test_pages_of_other_sizes_are_refused(tmp_path):
    Image.new("L", (8, 6)).save(tmp_path / "a.tif", save_all=True, append_images=[Image.new("L", (9, 6))])
    with pytest.raises(VideoError, match=r"frame 1 of .*a\.tif is 6 x 9, the first is 6 x 8"):
        len(read_video(tmp_path / "a.tif"))


def test_one_image_stays_one_frame_whatever_its_name(tmp_path):
    pictures()[1].save(tmp_path / "photo.mp4", "JPEG")
    pictures()[1].save(tmp_path / "b.tif")
    assert levels(read_video(tmp_path / "photo.mp4")) == levels(read_video(tmp_path / "b.tif")) == [80]


def test_an_animated_image_among_frames_is_refused(tmp_path):
    first, *rest = pictures()
    first.save(tmp_path / "0.webp", save_all=True, append_images=rest)
    first.save(tmp_path / "1.webp")
    with pytest.raises(VideoError, match=r"0\.webp: it holds 5 pictures"):
        read_video(tmp_path)
    (tmp_path / "1.webp").unlink()
    assert levels(read_video(tmp_path)) == LEVELS  # alone in its folder it is a video


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_an_animated_image_that_is_cut_off_anywhere_is_noticed(tmp_path, name):
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 255, (5, 20, 20, 3), dtype=np.uint8)
    images = [Image.fromarray(frame) for frame in noise]
    images[0].save(path, save_all=True, append_images=images[1:])
    whole, data = list(read_video(path)), path.read_bytes()
    last = len(data) - (12 if name == "a.png" else 0)  # PNG ends with a part that says nothing
    for cut in range(1, last, last // 60):
        path.write_bytes(data[:cut])
        with pytest.raises(VideoError, match=rf"{name}"):
            len(read_video(path))
        try:
            part = list(read_video(path, allow_truncated=True))
        except VideoError:
            continue
        assert len(part) < 5 or name == "a.gif"  # only the end mark may be missing
        assert all(np.array_equal(got, want) for got, want in zip(part, whole, strict=False))


# ---- what is cut off


@pytest.mark.parametrize(
    "name, codec",
    [
        *(("a.mp4", "libx264"), ("a.mov", "mjpeg"), ("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4")),
        *(("a.flv", "flv"), ("a.mpg", "mpeg1video"), ("a.wmv", "wmv2"), ("a.ogv", "libvpx"), ("a.ivf", "libvpx")),
        *(("a.h264", "libx264"), ("a.ts", "libx264")),
    ],
)
def test_a_file_of_any_format_that_is_cut_off_anywhere_is_noticed(tmp_path, name, codec):
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 255, (12, 48, 64, 3), dtype=np.uint8)
    kind = {"a.ogv": "ogg", "a.mpg": "mpeg"}.get(name)
    with av.open(str(path), "w", format=kind) as target:
        stream = target.add_stream(codec, rate=25)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for frame in noise:
            target.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        target.mux(stream.encode(None))
    whole, data = list(read_video(path)), path.read_bytes()
    assert len(whole) == 12
    for step in range(1, 20):
        path.write_bytes(data[: len(data) * step // 20 // 188 * 188 + 100])  # a .ts that ends with a packet looks whole
        try:
            part = list(read_video(path))
        except VideoError as error:
            assert name in str(error)
        else:  # what was cut off says nothing, such as an index or padding
            assert len(part) == 12 and all(np.array_equal(got, want) for got, want in zip(part, whole, strict=True))
        try:
            part = list(read_video(path, allow_truncated=True))
        except VideoError:
            continue
        assert all(np.array_equal(got, want) for got, want in zip(part[:-1], whole, strict=False))


# ---- what is no video


@pytest.mark.parametrize("name", ["notes.mp4", "notes.txt", "notes.mkv"])
@pytest.mark.parametrize(
    "content",
    [
        "hello world\n" * 400,
        "ffconcat version 1.0\nfile 'secret.mp4'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:0.4,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 26\n",
    ],
)
def test_texts_are_no_videos_and_open_no_other_files(tmp_path, name, content):
    film(tmp_path / "secret.mp4")
    (tmp_path / name).write_text(content)
    with pytest.raises(VideoError, match=rf"{name} cannot be opened as a video: it is none of the formats"):
        read_video(tmp_path / name)


def test_a_codec_that_is_not_known_is_named_with_the_file(tmp_path):
    path = film(tmp_path / "a.mov")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(VideoError, match=r"a\.mov .*does not know the codec"):
        read_video(path)


def test_a_title_that_is_not_utf8_does_no_harm(tmp_path):
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as target:
        target.metadata["title"] = "caffe"
        stream = target.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        target.mux(stream.encode(av.VideoFrame.from_ndarray(grey(120), format="rgb24")))
        target.mux(stream.encode(None))
    data = path.read_bytes()
    assert b"caffe" in data
    path.write_bytes(data.replace(b"caffe", b"caf\xe9\xff"))
    assert levels(read_video(path)) == [120]


def test_frames_above_the_limit_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "MAX_FRAME_PIXELS", 48 * 64)
    path = film(tmp_path / "a.h264", [grey(80)] * 300)
    larger = film(tmp_path / "larger.h264", [grey(40, 64, 80)])
    with pytest.raises(VideoError, match=r"larger\.h264: frames of 80 x 64 pixels are above the limit of 3072"):
        read_video(larger)
    path.write_bytes(path.read_bytes() + larger.read_bytes())  # only the decoder sees that
    with pytest.raises(VideoError, match=r"a\.h264 is damaged .*the decoder stops.* after 300 readable frames"):
        len(read_video(path))


def test_the_frames_that_are_kept_are_counted_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(video_frames, "_WINDOW_BYTES", 3 * grey(0).nbytes + 1)
    video = read_video(film(tmp_path / "a.mp4"))
    assert levels(video[t] for t in range(5)) == LEVELS and len(video._recent) == 3
    monkeypatch.setattr(video_frames, "_WINDOW_BYTES", 1)
    assert levels(read_video(tmp_path / "a.mp4")) == LEVELS


def test_devices_and_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", Path("/dev/null")):
        with pytest.raises(VideoError, match="no file but a device or a pipe"):
            read_video(path)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(VideoError, match=r"pipe\.jpg: it is no file"):
        read_video([tmp_path / "pipe.jpg"])


# ---- names


@pytest.mark.parametrize(
    "name", ["2024-01-01T10:30:00.mp4", "http:x.mp4", "concat:a|b.mp4", "a%03d.mp4", "-.mp4", "ü 猫.mp4"]
)
def test_no_part_of_a_name_is_taken_for_an_address(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    film(Path("x.mp4")).rename(name)
    assert levels(read_video(name)) == LEVELS
    assert levels(read_video(tmp_path / name)) == LEVELS


def test_files_of_operating_systems_are_no_frames(tmp_path, caplog):
    for index, picture in enumerate(pictures()):
        picture.save(tmp_path / f"{index}.jpg")
        (tmp_path / f"._{index}.jpg").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"x")
    assert levels(read_video(tmp_path)) == LEVELS
    assert levels(read_video(str(tmp_path / "*"))) == LEVELS
    assert levels(read_video(sorted(tmp_path.iterdir(), key=lambda path: path.name))) == LEVELS
    assert "files of the operating system are left out" in caplog.text


def test_folders_with_brackets_are_found_with_and_without_a_pattern(tmp_path):
    folder = tmp_path / "clip[1] *"
    folder.mkdir()
    for index, picture in enumerate(pictures()):
        picture.save(folder / f"f[{index}].png")
    assert levels(read_video(folder)) == LEVELS
    assert levels(read_video(str(folder / "*.png"))) == LEVELS
    assert levels(read_video(str(folder / "f[[]?].png"))) == LEVELS
    assert levels(read_video(folder / "f[2].png")) == [120]


def test_images_of_several_kinds_in_one_folder_are_said(tmp_path, caplog):
    pictures()[0].save(tmp_path / "0.jpg")
    pictures()[1].save(tmp_path / "1.jpeg")
    read_video(tmp_path)
    assert caplog.text == ""
    pictures()[1].save(tmp_path / "1.png")
    read_video(tmp_path)
    assert "holds images of several kinds (.jpg, .png)" in caplog.text


def test_a_video_of_one_frame_is_said(tmp_path, caplog):
    video = read_video(film(tmp_path / "a.mp4", [grey(80)]))
    assert len(video) == 1
    assert [record.message for record in caplog.records] == [f"{tmp_path / 'a.mp4'}: this video has one frame"]
