"""ImageFolder: what is read, and which hostile content is refused."""

import io
import os
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from audit_cli.data import Limits, read_images
from audit_cli.errors import DataError, UsageError


def image(seed: int = 0, size: tuple[int, int] = (8, 6)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **kwargs: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **kwargs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of three lossless images each."""
    root = tmp_path / "trusted"
    for label, name in enumerate(("cat", "dog")):
        for i in range(3):
            save(root / name / f"{i}.png", image(10 * label + i))
    return root


def test_reads_pixels_labels_and_names(folder: Path) -> None:
    raw = read_images(folder)
    assert raw.class_names == ("cat", "dog")
    assert raw.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert all(np.array_equal(raw.images[3 * c + i], image(10 * c + i)) for c in range(2) for i in range(3))


def test_digest_follows_pixels_labels_and_names_but_not_encoding(folder: Path) -> None:
    before = read_images(folder).digest
    save(folder / "cat" / "0.png", image(0), compress_level=0)
    assert read_images(folder).digest == before
    (folder / "cat").rename(folder / "bird")
    assert read_images(folder).digest != before
    (folder / "bird").rename(folder / "cat")
    save(folder / "cat" / "0.png", image(99))
    assert read_images(folder).digest != before


@pytest.mark.parametrize("suffix", ["jpg", "webp", "bmp"])
def test_other_formats(folder: Path, suffix: str) -> None:
    save(folder / "cat" / f"other.{suffix}", image(7))
    assert len(read_images(folder)) == 7


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "d" / "cat" / ("x.png" if mode != "CMYK" else "x.jpg")
    path.parent.mkdir(parents=True)
    extra = {"transparency": bytes([0, 9])} if mode == "P" else {}
    Image.fromarray(image()).convert(mode).save(path, **extra)
    assert read_images(tmp_path / "d").images[0].shape == (8, 6, 3)


def test_limit_per_class_is_seeded(folder: Path) -> None:
    first, again, other = (read_images(folder, per_class=2, seed=s) for s in (0, 0, 5))
    assert first.labels.tolist() == [0, 0, 1, 1]
    assert first.digest == again.digest
    assert first.digest != other.digest


def test_hidden_files_and_files_beside_the_classes_are_ignored(folder: Path) -> None:
    (folder / "README.txt").write_text("hello")
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / "cat" / ".DS_Store").write_bytes(b"\0")
    raw = read_images(folder)
    assert len(raw) == 6
    assert raw.notes == ("files beside the class folders, ignored: 1",)


def png_of(width: int, height: int) -> bytes:
    """A small PNG whose header announces any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def gif() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image()).save(buffer, "GIF")
    return buffer.getvalue()


def truncated() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image(size=(64, 64))).save(buffer, "JPEG")
    return buffer.getvalue()[:1000]


def animated() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.fromarray(image(i)) for i in range(2)]
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def sixteen_bit() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint16).reshape(8, 6)).save(buffer, "PNG")
    return buffer.getvalue()


HOSTILE = {
    "bomb": (lambda: png_of(30_000, 30_000), "hostile|pixels"),
    "bomb below Pillow's own limit": (lambda: png_of(8_000, 8_000), "more than 50000000 pixels"),
    "huge header": (lambda: png_of(2**31 - 1, 2**31 - 1), "hostile|pixels"),
    "truncated": (truncated, "damaged"),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "by content"),
    "gif": (gif, "by content"),
    "pickle": (lambda: pickle.dumps(print), "by content"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "by content"),
    "empty": (lambda: b"", "by content"),
    "animated": (animated, "animated"),
    "sixteen bits": (sixteen_bit, "8 bits"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_image_is_refused_by_name(folder: Path, kind: str) -> None:
    make, message = HOSTILE[kind]
    (folder / "dog" / "evil.png").write_bytes(make())
    with pytest.raises(DataError, match=rf"evil\.png.*({message})"):
        read_images(folder)


def test_limits(folder: Path) -> None:
    for limits, message in [
        (Limits(images=5), "6 images, more than the 5"),
        (Limits(entries=5), "too many files"),
        (Limits(pixels=40), "more than 40 pixels"),
        (Limits(file_bytes=50), "larger than the 50 bytes"),
        (Limits(total_bytes=500), "more than 500 bytes of pixels"),
        (Limits(classes=1), "2 class folders"),
    ]:
        with pytest.raises(DataError, match=message):
            read_images(folder, limits=limits)
    with pytest.raises(ValueError, match=r"Limits\(images=0\): must be positive"):
        Limits(images=0)


def test_link_out_of_the_folder_is_refused_and_one_inside_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "cat" / "again.png").symlink_to(folder / "cat" / "0.png")
    assert len(read_images(folder)) == 7
    save(tmp_path / "secret.png", image(5))
    (folder / "cat" / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match=r"link\.png: a link that leads out"):
        read_images(folder)


def test_linked_class_folder_outside_is_refused(folder: Path, tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "a.png", image(5))
    (folder / "fox").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(DataError, match="leads out"):
        read_images(folder)


def test_a_pipe_is_refused_without_waiting(folder: Path) -> None:
    os.mkfifo(folder / "cat" / "pipe.png")
    with pytest.raises(DataError, match="not a regular file"):
        read_images(folder)


def test_dangling_link_and_unreadable_file(folder: Path) -> None:
    (folder / "cat" / "gone.png").symlink_to(folder / "cat" / "nothing.png")
    with pytest.raises(DataError, match=r"gone\.png: cannot be read"):
        read_images(folder)


def test_structure_errors(folder: Path, tmp_path: Path) -> None:
    (folder / "fox").mkdir()
    with pytest.raises(DataError, match="fox: class folder without images"):
        read_images(folder)
    (folder / "fox" / "train").mkdir()
    with pytest.raises(DataError, match="a folder inside a class folder"):
        read_images(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no class folders"):
        read_images(tmp_path / "empty")
    with pytest.raises(UsageError, match="no such file or folder"):
        read_images(tmp_path / "absent")


def test_a_name_cannot_write_to_the_terminal(folder: Path) -> None:
    (folder / "dog" / "\x1b[31m\n::error::evil.png").write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        read_images(folder)
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_data(tmp_path: Path) -> None:
    for content, message in [
        (pickle.dumps([1]), "pickle"),
        (b"PAR1....", "readable parquet"),
        (b"hello", "unknown format"),
    ]:
        path = tmp_path / "data.npz"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=message):
            read_images(path)


def test_a_plain_folder_is_unlabelled_where_that_is_said(folder: Path) -> None:
    plain = folder / "cat"
    (plain / ".hidden").write_text("no image")
    raw = read_images(plain, unlabelled=True)
    assert (raw.labelled, raw.class_names, raw.labels.tolist()) == (False, (), [0, 0, 0])
    assert all(np.array_equal(pixels, image(i)) for i, pixels in enumerate(raw.images))
    assert read_images(folder, unlabelled=True).labelled
    with pytest.raises(DataError, match="no class folders"):
        read_images(plain)
    (plain / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"notes\.txt"):
        read_images(plain, unlabelled=True)
