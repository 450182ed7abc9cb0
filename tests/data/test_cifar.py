"""CIFAR batches: read as Python 2 and Python 3 write them; a pickle that does anything else is refused unexecuted."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from audit_cli.data import Limits, read_images
from audit_cli.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
ROWS = PIXELS.transpose(0, 3, 1, 2).reshape(4, 3072)
LABELS = [1, 0, 2, 1]
NAMES = ["plane", "car", "bird"]


def text(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value


def python2_batch(rows: np.ndarray, labels: list[int], key: bytes = b"labels") -> bytes:
    """The instructions of the published batch files: protocol 2, text as Python 2 byte strings."""
    shape = b"M" + struct.pack("<H", len(rows)) + b"M" + struct.pack("<H", 3072) + b"\x86"
    dtype = (
        b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    data = b"T" + struct.pack("<i", rows.size) + rows.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b")
    array += b"\x87R(K\x01" + shape + dtype + b"\x89" + data + b"tb"
    items = b"".join(b"K" + bytes([label]) for label in labels)
    return (
        b"\x80\x02}q\x01("
        + text(b"batch_label")
        + text(b"testing batch 1 of 1")
        + (text(key) + b"]q\x02(" + items + b"e")
        + (text(b"data") + array)
        + b"u."
    )


def meta0(names: list[str]) -> bytes:
    """batches.meta in protocol 0, as published."""
    items = "".join(f"S'{name}'\np{i + 3}\na" for i, name in enumerate(names))
    return f"(dp0\nS'num_cases_per_batch'\np1\nI10000\nsS'label_names'\np2\n(lp2\n{items}s.".encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    (root / "test_batch").write_bytes(python2_batch(ROWS, LABELS))
    (root / "batches.meta").write_bytes(meta0(NAMES))
    return root


def test_the_hand_written_batch_is_a_real_one() -> None:
    loaded = pickle.loads(python2_batch(ROWS, LABELS), encoding="bytes")
    assert np.array_equal(loaded[b"data"], ROWS)
    assert loaded[b"labels"] == LABELS
    assert pickle.loads(meta0(NAMES))["label_names"] == NAMES


def test_published_form(folder: Path) -> None:
    for path in (folder, folder.parent):
        raw = read_images(path)
        assert np.array_equal(np.stack(raw.images), PIXELS)
        assert raw.labels.tolist() == LABELS
        assert raw.class_names == tuple(NAMES)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_written_again_by_python_3(folder: Path, protocol: int) -> None:
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": ROWS, b"labels": LABELS}, protocol=protocol))
    assert np.array_equal(np.stack(read_images(folder).images), PIXELS)


def test_training_batches_are_joined(folder: Path) -> None:
    for i in (1, 2):
        (folder / f"data_batch_{i}").write_bytes(python2_batch(ROWS, LABELS))
    assert len(read_images(folder, split="train")) == 8
    with pytest.raises(DataError, match="no split `val`"):
        read_images(folder, split="val")


def test_cifar100(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / name).write_bytes(python2_batch(ROWS, LABELS, b"fine_labels"))
    (tmp_path / "meta").write_bytes(pickle.dumps({b"fine_label_names": NAMES}, protocol=2))
    raw = read_images(tmp_path, per_class=1)
    assert sorted(raw.labels.tolist()) == [0, 1, 2]
    assert raw.class_names == tuple(NAMES)


class Execute:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("file", ["test_batch", "batches.meta"])
def test_malicious_pickle_is_not_executed(folder: Path, tmp_path: Path, protocol: int, file: str) -> None:
    marker = tmp_path / "executed"
    content = {b"data": ROWS, b"labels": LABELS, b"label_names": Execute(marker)}
    (folder / file).write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(DataError, match="refused, not a CIFAR batch"):
        read_images(folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'exit 1'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"cnumpy\nload\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"(S'exit 1'\nios\nsystem\n.",
        b"\x80\x02\x82\x01.",
        b"P1\n.",
        b"r\xff\xff\xff\x7f.",
        b"]r\xff\xff\xff\x7f.",
        b"cnumpy\ndtype\n}S'call'\nNsb.",  # state for a stand-in
        b"cnumpy\nndarray\n(tR.",
        b"\x80\x02}",
        b"",
        b"N.",
        b"(lp0\n.",
    ],
    ids=lambda content: repr(content)[:40],
)
def test_other_pickle_programs(folder: Path, content: bytes) -> None:
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match=r"test_batch: (refused|holds no dictionary)"):
        read_images(folder)


def nested(levels: int, *, fetch: bytes = b"h\x01", leave: bytes = b"") -> bytes:
    """A tuple of tuples, each of the same one twice; `leave` must let it lie on the stack."""
    return b")" + levels * (leave + b"q\x01" + fetch + b"\x86")


@pytest.mark.parametrize(
    "content",
    [
        b"}" + nested(200) + b"Ns.",
        b"}(" + nested(200) + b"Nu.",
        b"(" + nested(200) + b"Nd.",
        b"}(NN" + nested(200) + b"Nu.",
        b"}" + nested(200, leave=b"Nb") + b"Ns.",
        b"}" + nested(200, leave=b"(u") + b"Ns.",
        b"}" + nested(200, leave=b"(e") + b"Ns.",
        b"}" + nested(200, fetch=b"j\x01\x00\x00\x00") + b"Ns.",
        b"}" + nested(200, fetch=b"g1\n") + b"q\x02Nh\x02Ns.",
        b"}" + b"".join(b")" if i == 0 else b"\x94h" + bytes([i - 1]) + b"\x86" for i in range(200)) + b"Ns.",
        b"})" + 300_000 * b"\x85" + b"Ns.",
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_tuple_as_a_key_is_not_hashed(folder: Path, content: bytes) -> None:
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match="a tuple as the key of a dictionary"):
        read_images(folder)


@pytest.mark.parametrize(
    "content",
    [
        {b"data": ROWS},
        {b"labels": LABELS},
        {b"data": ROWS, b"labels": LABELS[:2]},
        {b"data": ROWS.astype(np.int16), b"labels": LABELS},
        {b"data": ROWS[:, :100], b"labels": LABELS},
        {b"data": [1, 2], b"labels": LABELS},
        {b"data": ROWS, b"labels": [1, 2, 3, -1]},
        {b"data": ROWS, b"labels": [1, 2, 3, "x"]},
        {b"data": ROWS, b"labels": [1, 2, 3, 100_000]},
        {b"data": ROWS, b"labels": [1, 2, 3, 2**2000]},
        {b"data": np.array([[None]]), b"labels": LABELS},
    ],
)
def test_wrong_content(folder: Path, content: object) -> None:
    (folder / "test_batch").write_bytes(pickle.dumps(content, protocol=4))
    with pytest.raises(DataError, match=r"test_batch: .*original"):
        read_images(folder)


@pytest.mark.parametrize(("names", "classes"), [(["a", "b", "c", "d"], 3), (["a", "b", "c" * 1_001], 100_000)])
def test_names_too_many_or_too_long(folder: Path, names: list[str], classes: int) -> None:
    (folder / "batches.meta").write_bytes(meta0(names))
    with pytest.raises(DataError, match=r"batches.meta: more than \d+ names in `label_names`, or one of over 1000"):
        read_images(folder, limits=Limits(classes=classes))


def test_labels_without_names_and_size_limit(folder: Path) -> None:
    (folder / "batches.meta").write_bytes(meta0(NAMES[:2]))
    with pytest.raises(DataError, match="label 2 but only 2 class names"):
        read_images(folder)
    with pytest.raises(DataError, match="larger than"):
        read_images(folder, limits=Limits(archive_bytes=100))
