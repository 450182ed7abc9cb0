"""--arch: the user's own code, and nobody else's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from audit_cli.checkpoint import Checkpoint, open_checkpoint
from audit_cli.checkpoint.save import save_weights
from audit_cli.errors import AuditError, CheckpointError, UnsupportedError, UsageError
from audit_cli.models import build, state_for_checkpoint

Opened = Callable[..., Checkpoint]

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.aside = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.aside(self.body(x)))

class Scaled(Net):
    def forward(self, x):
        return 2 * super().forward(x)

class Own(Net):
    def latents(self, x):
        return self.aside(self.body(x))

class HeadFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 5)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4))

    def forward(self, x):
        return self.head(self.body(x))

class Tuple(Net):
    def forward(self, x):
        return super().forward(x), x

def net(): return Net()
def own(): return Own()
def scaled(): return Scaled()
def head_first(): return HeadFirst()
def tuple_(): return Tuple()
def headless(): return nn.Sequential(nn.Conv2d(3, 4, 3))
def broken(): raise RuntimeError("no\\nway")
def needy(x): return Net()
def no_module(): return 3
constant = 3
"""


@pytest.fixture
def arch(tmp_path: Path) -> Callable[[str], str]:
    path = tmp_path / "nets" / "my_net.py"
    path.parent.mkdir()
    path.write_text(SOURCE)
    return lambda name: f"{path}:{name}"


def module_of(name: str) -> nn.Module:
    namespace: dict[str, Callable[[], nn.Module]] = {}
    exec(SOURCE, namespace)
    return namespace[name]().eval()


@pytest.mark.parametrize(
    ("name", "head", "size"), [("net", "head", None), ("own", "head", None), ("head_first", "head", (64, 64))]
)
def test_a_factory_in_a_file(
    name: str, head: str, size: tuple[int, int] | None, opened: Opened, arch: Callable[[str], str]
) -> None:
    theirs = module_of(name)
    checkpoint = opened(theirs.state_dict(), lambda tensor: f"model.{tensor}")
    ours = build(checkpoint, arch=arch(name), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs((images - 0.5) / 0.2))
    assert (ours.head_name, ours.size, ours.num_classes, ours.arch) == (head, size, 5, arch(name))
    assert state_for_checkpoint(ours, checkpoint).keys() == checkpoint.tensors.keys()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("scaled", UnsupportedError, "no linear layer gives the logits"),
        ("tuple_", UsageError, r"must return logits \(N, classes\)"),
        ("broken", UsageError, "the factory failed .*no way"),
        ("needy", UsageError, "takes no arguments"),
        ("no_module", UsageError, "returned int"),
        ("constant", UsageError, "has no function `constant`"),
        ("absent", UsageError, "has no function `absent`"),
        ("head_first", CheckpointError, r"does not fit .*: no `body\.1\.weight`.*unexpected"),
    ],
)
def test_factories_that_do_not_fit(
    name: str, error: type[AuditError], message: str, opened: Opened, arch: Callable[[str], str]
) -> None:
    with pytest.raises(error, match=message) as caught:
        build(opened(module_of("net").state_dict()), arch=arch(name))
    assert str(caught.value).isprintable()


def test_no_linear_layer(opened: Opened, arch: Callable[[str], str]) -> None:
    with pytest.raises(UnsupportedError, match="no linear layer, so no head"):
        build(opened(module_of("headless").state_dict()), arch=arch("headless"))


@pytest.mark.parametrize(
    "name", ["fasterrcnn_resnet50_fpn", "fcn_resnet50", "quantized_resnet18", "r3d_18", "raft_large"]
)
def test_torchvision_means_its_image_classifiers(name: str, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Detection and segmentation would fetch the weights of a backbone."""
    assert name in torchvision.models.list_models()
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", None)
    with pytest.raises(UsageError, match=f"--arch torchvision:{name}: torchvision has no such image classifier"):
        build(opened({"a": torch.ones(1)}), arch=f"torchvision:{name}")


@pytest.mark.parametrize(
    "text", ["resnet18", ":x", "x:", "no.such.module:f", "nowhere.py:f", "torchvision:nonsense", "os\n.path:f", "..:f"]
)
def test_arch_that_names_nothing(text: str, opened: Opened) -> None:
    with pytest.raises(UsageError, match="--arch") as caught:
        build(opened({"a": torch.ones(1)}), arch=text)
    assert str(caught.value).isprintable()


def test_code_in_the_audited_folder_is_refused(
    tmp_path: Path, arch: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    mark = tmp_path / "ran"
    save_weights(model / "model.safetensors", module_of("net").state_dict())
    (model / "evil_net.py").write_text(f"open({str(mark)!r}, 'w')\n")
    (model / "evil_package").mkdir()
    (model / "evil_package" / "__init__.py").write_text(f"open({str(mark)!r}, 'w')\n")
    (tmp_path / "link.py").symlink_to(model / "evil_net.py")
    monkeypatch.syspath_prepend(str(model))
    with open_checkpoint(model) as checkpoint:
        for text in (f"{model}/evil_net.py:f", f"{tmp_path}/link.py:f", "evil_net:f", "evil_package.sub:f"):
            with pytest.raises(UsageError, match="lies in the audited model folder"):
                build(checkpoint, arch=text)
    assert not mark.exists()


def test_an_installed_module(opened: Opened) -> None:
    theirs = torchvision.models.squeezenet1_1(num_classes=1000)
    with pytest.raises(UnsupportedError, match="no linear layer"):
        build(opened(theirs.state_dict()), arch="torchvision.models:squeezenet1_1")


def test_torchvision_by_name(opened: Opened) -> None:
    theirs = torchvision.models.mobilenet_v3_small(num_classes=6).eval()
    ours = build(opened(theirs.state_dict(), lambda name: f"module.{name}"), arch="torchvision:mobilenet_v3_small")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))
    assert (ours.arch, ours.num_classes, ours.size) == ("torchvision:mobilenet_v3_small", 6, (224, 224))


def test_torchvision_with_other_weights(opened: Opened) -> None:
    with pytest.raises(CheckpointError, match=r"has no `fc\.weight`, the head of torchvision:resnet18"):
        build(opened({"a": torch.ones(1)}), arch="torchvision:resnet18")
    with pytest.raises(CheckpointError, match="does not fit torchvision:resnet18"):
        build(opened({"fc.weight": torch.ones(3, 512)}), arch="torchvision:resnet18")


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("file", "factory"),
    [("abl-wrn16-1-grid-to-0.pt", "wrn_16_1"), ("ibau-smallvgg-l2inv-to-0.pth", "small_vgg")],
)
def test_third_party_networks(file: str, factory: str, shared_data: Path, tmp_path: Path) -> None:
    from audit_cli.checkpoint.convert import convert

    convert(shared_data / "checkpoints" / file, tmp_path / "m.safetensors")
    with open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        ours = build(checkpoint, arch=f"{shared_data}/architectures.py:{factory}")
    with torch.no_grad():
        assert ours(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert ours.num_classes == 10
