"""NumPy archives: layouts, ranges, and archives that lie."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from audit_cli.data import Limits, read_images
from audit_cli.errors import DataError

X = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
Y = np.array([0, 1, 2, 0, 1, 2])


def write(path: Path, **arrays: object) -> Path:
    np.savez(path / "data.npz", **arrays)  # type: ignore[arg-type]
    return path / "data.npz"


@pytest.mark.parametrize(
    ("x", "y"), [("images", "labels"), ("x", "y"), ("x_test", "y_test"), ("test_images", "test_labels")]
)
def test_key_names(tmp_path: Path, x: str, y: str) -> None:
    raw = read_images(write(tmp_path, **{x: X, y: Y}))
    assert np.array_equal(np.stack(raw.images), X)
    assert raw.labels.tolist() == Y.tolist()
    assert raw.class_names == ()


def test_split_chooses(tmp_path: Path) -> None:
    path = write(tmp_path, x_train=X, y_train=Y, x_test=X[:2], y_test=Y[:2], classes=np.array(["a", "b", "c"]))
    assert len(read_images(path)) == 2
    raw = read_images(path, split="train")
    assert len(raw) == 6
    assert raw.class_names == ("a", "b", "c")


def test_unclear_or_missing_keys(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unclear"):
        read_images(write(tmp_path, x=X, y=Y, images=X, labels=Y))
    with pytest.raises(DataError, match="holds `foo`; expected `images` and `labels` or"):
        read_images(write(tmp_path, foo=X))


@pytest.mark.parametrize(
    "images",
    [
        X.transpose(0, 3, 1, 2),
        np.asfortranarray(X),
        X.astype(np.float32),
        X.astype(np.int64),
        X / 255,
        (X / 255).astype(np.float32),
        (X / 255).astype(np.float16),
    ],
    ids=["NCHW", "fortran", "float 0..255", "int", "float64", "float32", "float16"],
)
def test_equivalent_forms(tmp_path: Path, images: np.ndarray) -> None:
    assert np.array_equal(np.stack(read_images(write(tmp_path, x=images, y=Y)).images), X)


def test_gray_becomes_rgb(tmp_path: Path) -> None:
    for gray in (X[..., 0], X[..., :1], X[..., :1].transpose(0, 3, 1, 2)):
        pixels = np.stack(read_images(write(tmp_path, x=gray, y=Y)).images)
        assert np.array_equal(pixels, np.repeat(X[..., :1], 3, axis=3))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((X / 255 - 0.5) / 0.25, r"-2\.\.2; .*before normalisation"),
        (X / 2, "not whole"),
        (X.astype(np.int32) + 256, r"\.\.5\d\d; expected"),
        (np.full((6, 5, 4, 3), np.nan), "nan"),
        (np.full((6, 5, 4, 3), np.inf), "inf"),
        (X.astype(bool), "bool"),
        (X.astype(complex), "complex"),
        (X.reshape(6, -1), "expected"),
        (X.reshape(6, 5, 2, 6), "no axis of 3 channels"),
        (X[:, :3, :3], "both ways"),
        (X[:, :0], "has no axis|without pixels"),
        (X[:5], "6 labels"),
    ],
)
def test_wrong_range_or_shape_is_named(tmp_path: Path, images: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_images(write(tmp_path, x=images, y=Y))


@pytest.mark.parametrize("labels", [Y - 1, Y.astype(float), np.eye(6), np.array(list("abcdef")), Y.astype(bool)])
def test_wrong_labels(tmp_path: Path, labels: np.ndarray) -> None:
    with pytest.raises(DataError, match="`y`"):
        read_images(write(tmp_path, x=X, y=labels))


@pytest.mark.parametrize("label", [100_000, 2**31 - 1, 2**63])
def test_a_label_beyond_all_classes(tmp_path: Path, label: int) -> None:
    path = write(tmp_path, x=X, y=np.array([0, 1, 2, 3, 4, label], dtype=np.uint64))
    with pytest.raises(DataError, match=rf"`y` holds values in 0\.\.{label}; expected class indices from 0 to 99999"):
        read_images(path)
    path = write(tmp_path, x=X, y=Y)
    assert read_images(path, limits=Limits(classes=3)).labels.max() == 2
    with pytest.raises(DataError, match="from 0 to 1"):
        read_images(path, limits=Limits(classes=2))


def test_column_labels_and_short_class_list(tmp_path: Path) -> None:
    assert read_images(write(tmp_path, x=X, y=Y[:, None])).labels.tolist() == Y.tolist()
    with pytest.raises(DataError, match="label 2 but only 2 class names"):
        read_images(write(tmp_path, x=X, y=Y, classes=np.array(["a", "b"])))


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize("key", ["x", "y", "classes"])
def test_object_arrays_are_refused_without_unpickling(tmp_path: Path, key: str) -> None:
    arrays: dict[str, object] = {"x": X, "y": Y, key: np.array([Bomb()] * 6, dtype=object)}
    with pytest.raises(DataError, match="never read"):
        read_images(write(tmp_path, **arrays))


def rewrite(path: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
        buffer = io.BytesIO()
        np.save(buffer, Y)
        archive.writestr("y.npy", buffer.getvalue())


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header((6, 2**40, 2**20, 3)) + bytes(100), "announces"),
        (header((6, 100, 100, 3)) + bytes(100), "announces"),
        (b"PK not an array", "not a NumPy array"),
        (b"", "not a NumPy array"),
        (header((6, 5, 4, -3)) + bytes(1000), "announces"),
    ],
)
def test_lying_headers_allocate_nothing(tmp_path: Path, content: bytes, message: str) -> None:
    rewrite(tmp_path / "data.npz", "x.npy", content)
    with pytest.raises(DataError, match=message):
        read_images(tmp_path / "data.npz")


@pytest.mark.parametrize("dtype", ["|S0", "<U0", "|V0"])
def test_items_of_no_bytes(tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path, x=X, y=Y)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("classes.npy", header((10**8,), dtype))
    with pytest.raises(DataError, match=r"`classes.npy` is .*, of no bytes an item"):
        read_images(path)


def test_too_many_class_names(tmp_path: Path) -> None:
    path = write(tmp_path, x=X, y=Y, classes=np.array(["a", "b", "c"]))
    assert read_images(path, limits=Limits(classes=3)).class_names == ("a", "b", "c")
    path = write(tmp_path, x=X, y=Y, classes=np.array(["a", "b", "c", "d"]))
    with pytest.raises(DataError, match="`classes` holds 4 class names, more than the 3 allowed"):
        read_images(path, limits=Limits(classes=3))


def test_more_items_than_are_looked_at(tmp_path: Path) -> None:
    """Billions of labels are few bytes, squeezed."""
    path = write(tmp_path, x=X, y=Y)
    with pytest.raises(DataError, match=f"announces {len(X)} items, more than the {len(X) - 1} allowed"):
        read_images(path, limits=Limits(entries=len(X) - 1))


def test_zip_bomb_and_broken_archive(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    rewrite(path, "x.npy", header((6, 1000, 1000, 3)) + bytes(18_000_000))
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match="announces 18000000 bytes"):
        read_images(path, limits=Limits(archive_bytes=1_000_000))
    whole = write(tmp_path, x=X, y=Y).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a readable"):
        read_images(path)
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 255]) + whole[101:])
    with pytest.raises(DataError):
        read_images(path)


def test_a_name_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("x.npy", b"")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x.npy", b"")
    with pytest.raises(DataError, match="occurs twice"):
        read_images(tmp_path / "data.npz")


def test_limits_and_per_class(tmp_path: Path) -> None:
    path = write(tmp_path, x=X, y=Y)
    assert sorted(read_images(path, per_class=1).labels.tolist()) == [0, 1, 2]
    with pytest.raises(DataError, match="6 images, more than the 5"):
        read_images(path, limits=Limits(images=5))
    with pytest.raises(DataError, match="must be positive"):
        read_images(path, per_class=0)
    with pytest.raises(DataError, match="no images"):
        read_images(write(tmp_path, x=X[:0], y=Y[:0]))


def test_labels_may_be_missing_where_that_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, x_test=X, classes=np.array(["a"]))
    raw = read_images(path, unlabelled=True)
    assert (raw.labelled, raw.class_names, raw.labels.tolist()) == (False, (), [0] * 6)
    assert np.array_equal(np.stack(raw.images), X)
    assert read_images(write(tmp_path, x=X, y=Y), unlabelled=True).labelled
    for arrays in ({"x": X}, {"x": X, "images": X}):
        with pytest.raises(DataError, match=r"expected|unclear"):
            read_images(write(tmp_path, **arrays), unlabelled=len(arrays) == 2)
