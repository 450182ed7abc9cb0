"""Class names against the model's labels: matched or refused, never guessed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from audit_cli.data import Preprocessing, RawImages, load_trusted, prepare
from audit_cli.errors import DataError


def raw(names: tuple[str, ...], labels: list[int] | None = None) -> RawImages:
    y = np.array(list(range(len(names))) if labels is None else labels)
    return RawImages.of([np.full((4, 4, 3), 10 * i, dtype=np.uint8) for i in range(len(y))], y, names, "data")


def load(
    names: tuple[str, ...], labels: tuple[str, ...], y: list[int] | None = None
) -> tuple[list[int], tuple[str, ...]]:
    trusted = prepare(raw(names, y), Preprocessing(), labels)
    return trusted.labels.tolist(), trusted.class_names


def test_names_are_mapped_to_the_models_order() -> None:
    assert load(("bird", "cat", "dog"), ("dog", "bird", "cat")) == ([1, 2, 0], ("dog", "bird", "cat"))


def test_case_space_and_underscore_do_not_matter() -> None:
    assert load(("GREAT_white shark", "Fox"), ("fox", "great white shark"))[0] == [1, 0]


def test_a_subset_keeps_the_models_classes() -> None:
    assert load(("cat",), ("dog", "bird", "cat")) == ([2], ("dog", "bird", "cat"))


def test_parts_of_imagenet_labels() -> None:
    labels = ("tench, Tinca tinca", "great white shark, white shark", "crane", "crane", "maillot", "maillot, tank suit")
    assert load(("Tinca_tinca", "white shark", "maillot"), labels)[0] == [0, 1, 4]
    with pytest.raises(DataError, match="several of the model's labels: `crane`"):
        load(("crane",), labels)
    assert load(labels, labels)[0] == list(range(6))


def test_mismatch_lists_the_first_names() -> None:
    with pytest.raises(
        DataError, match=r"2 of 3 class names are not .*: `0`, `1`; the model's begin with `dog`, `cat`"
    ):
        load(("0", "1", "dog"), ("dog", "cat"))
    with pytest.raises(DataError, match="match the same label"):
        load(("dog", "D og"), ("dog", "cat"))
    with pytest.raises(DataError) as caught:
        load(("\x1b[31mevil\n",), ("dog",))
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("labels", [(), ("LABEL_0", "LABEL_1", "LABEL_2"), ("0", "1", "2")])
def test_a_model_without_names_takes_the_datas_order(labels: tuple[str, ...]) -> None:
    assert load(("a", "b"), labels) == ([0, 1], ("a", "b"))


def test_numbers_are_names_where_the_datas_classes_are_called_by_them() -> None:
    assert load(("0", "1", "2"), ("2", "0", "1")) == ([1, 2, 0], ("2", "0", "1"))
    assert load(("10", "9"), tuple(map(str, range(11))))[0] == [10, 9], "not the data's order"
    assert load(("1",), ("0", "1")) == ([1], ("0", "1"))
    assert load(("7",), ("0", "1")) == ([0], ("7",)), "called otherwise: the numbers only count"


@pytest.mark.parametrize("names", [("cat", "dog"), ("0", "7"), ()])
@pytest.mark.parametrize("labels", [("1", "0", "2"), ("LABEL_1", "LABEL_0"), ("1", "1")])
def test_numbers_in_an_order_of_their_own_are_refused(names: tuple[str, ...], labels: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="numbers in an order of their own"):
        load(names, labels, [0, 1])


def test_a_number_too_long_to_count_is_a_name() -> None:
    long = "9" * 5000
    assert load((long, "a"), ("a", long))[0] == [1, 0]


def test_unnamed_data_are_indices() -> None:
    assert load((), ("dog", "cat"), [1, 0, 1]) == ([1, 0, 1], ("dog", "cat"))
    assert load((), (), [1, 0, 2]) == ([1, 0, 2], ("0", "1", "2"))
    with pytest.raises(DataError, match="label 2, but the model has 2 outputs"):
        load((), ("dog", "cat"), [1, 2])
    with pytest.raises(DataError, match="3 classes, but the model has 2 outputs"):
        load(("a", "b", "c"), ("0", "1"))


def test_load_trusted(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(6) % 2, classes=np.array(["cat", "dog"]))
    trusted = load_trusted(
        tmp_path / "d.npz", preprocessing=Preprocessing.for_size((32, 32)), labels=("dog", "cat"), per_class=2
    )
    assert trusted.images.shape == (4, 3, 32, 32)
    assert trusted.images.dtype == torch.float32
    assert trusted.per_class == (2, 2)
    assert trusted.labels.tolist().count(1) == 2
    assert len(trusted.digest) == 64
