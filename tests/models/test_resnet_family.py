"""ResNets are recognised from names and shapes, and compute what torchvision's and the paper's do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from audit_cli.checkpoint import Checkpoint, TensorInfo
from audit_cli.checkpoint.header import DTYPES
from audit_cli.errors import UnsupportedError
from audit_cli.models import build, identify, state_for_checkpoint
from audit_cli.models.blueprint import MOST_WRAPPERS, views

Opened = Callable[..., Checkpoint]
Randomised = Callable[[nn.Module], nn.Module]
FLOAT = {dtype: name for name, dtype in DTYPES.items()}


def header_of(module: nn.Module, prefix: str = "") -> Checkpoint:
    """A checkpoint that has the module's header and no data: enough to be recognised."""
    tensors = {
        prefix + name: TensorInfo(prefix + name, FLOAT[tensor.dtype], tuple(tensor.shape), "m.safetensors")
        for name, tensor in module.state_dict().items()
    }
    return Checkpoint(Path("m.safetensors"), (), "", (), tensors, None, None, {}, 0, Path())


@pytest.mark.parametrize(
    "name",
    [
        *["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"],
        *["wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"],
    ],
)
def test_every_torchvision_resnet_is_recognised_by_its_name(name: str) -> None:
    with torch.device("meta"):
        module = torchvision.models.get_model(name, weights=None, num_classes=7)
    found = identify(header_of(module))
    assert (found.arch, found.head, found.size) == (name, "fc", (224, 224))


def test_names_may_be_wrapped_so_often_and_no_more() -> None:
    with torch.device("meta"):
        module = torchvision.models.resnet18(num_classes=7)
    assert identify(header_of(module, "module." * MOST_WRAPPERS)).arch == "resnet18"
    with pytest.raises(UnsupportedError):
        identify(header_of(module, "module." * (MOST_WRAPPERS + 1)))
    assert len(views(header_of(module, "a." * 200))) == MOST_WRAPPERS + 1


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "wide_resnet50_2"])
def test_logits_are_torchvisions(name: str, opened: Opened, randomised: Randomised) -> None:
    theirs = randomised(torchvision.models.get_model(name, weights=None, num_classes=4))
    images = torch.rand(2, 3, 64, 64)
    ours = build(opened(theirs.state_dict()))
    with torch.no_grad():
        expected = theirs(images)
        logits, latents = ours.outputs(images)
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.head(latents), expected, rtol=1e-4, atol=1e-4)
    assert ours.num_classes == 4
    assert not ours.training


@pytest.mark.parametrize(
    ("name", "stated"),
    [
        (
            "resnet50",
            ["resnet50", "resnet50.a1_in1k", "tv_resnet50", "ResNet-50", "ssl_resnet50", ["resnetaa50"], None],
        ),
        ("resnext50_32x4d", ["resnext50_32x4d", "tv_resnext50_32x4d", "resnext50_32x4d.fb_swsl_ig1b_ft_in1k"]),
        ("wide_resnet50_2", ["wide_resnet50_2", "wide_resnet50_2.tv2_in1k"]),
    ],
)
def test_names_of_timm_for_the_same_network(name: str, stated: list[object]) -> None:
    with torch.device("meta"):
        header = header_of(torchvision.models.get_model(name, weights=None, num_classes=7))
    for architecture in stated:
        assert identify(replace(header, config={"architecture": architecture})).arch == name


@pytest.mark.parametrize(
    "stated", ["resnetblur50", "resnetaa50", "resnetblur50.bt_in1k", "resnet101", "wide_resnet50_2"]
)
def test_another_network_of_timm_with_the_same_tensors(stated: str) -> None:
    """timm and transformers build what config.json names; shapes cannot tell a blurred pool from a plain one."""
    with torch.device("meta"):
        header = header_of(torchvision.models.resnet50(num_classes=7))
    message = rf"tensors are those of resnet50, config\.json says `{stated}`; .*or --arch timm:{stated}$"
    with pytest.raises(UnsupportedError, match=message):
        identify(replace(header, config={"architecture": stated}))


def test_a_cifar_network_may_be_named_as_the_large_one() -> None:
    state = Reference([64, 128, 256, 512], [2, 2, 2, 2], "B").state_dict()
    header = with_header({name: tensor.to("meta") for name, tensor in state.items()})
    assert identify(replace(header, config={"architecture": "resnet18"})).arch == "resnet18-cifar"
    with pytest.raises(UnsupportedError, match="--arch timm:resnet34"):
        identify(replace(header, config={"architecture": "resnet34"}))


def test_arguments_of_timm() -> None:
    """timm builds the network with these: a stride or a pooling has no tensor."""
    with torch.device("meta"):
        header = header_of(torchvision.models.resnet18(num_classes=7))

    def told(arguments: object) -> str:
        return identify(replace(header, config={"architecture": "resnet18", "model_args": arguments})).arch

    saved = {"num_classes": 7, "global_pool": "avg", "in_chans": 3, "drop_path_rate": 0.1, "act_layer": None}
    for harmless in (saved, {}, None):
        assert told(harmless) == "resnet18"
    for key, value in {"output_stride": 8, "global_pool": "max", "act_layer": "silu", "in_chans": 1}.items():
        with pytest.raises(UnsupportedError, match=f"changes resnet18 by model_args, `{key}`; pass --arch"):
            told(saved | {key: value})
    with pytest.raises(UnsupportedError, match="model_args"):
        told([1])


class Reference(nn.Module):
    """A CIFAR ResNet written down naively, under the names of the public releases."""

    def __init__(self, widths: list[int], depths: list[int], option: str, head: str = "linear") -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])
        self.option, self.depths = option, depths
        inputs = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True), 1):
            layer = nn.Sequential()
            for number in range(depth):
                block = nn.Module()
                stride = 2 if stage > 1 and number == 0 else 1
                block.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
                block.bn1 = nn.BatchNorm2d(width)
                block.conv2, block.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
                if stride == 2 and option == "B":
                    conv = nn.Conv2d(inputs, width, 1, 2, bias=False)
                    block.shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))
                layer.append(block)
                inputs = width
            setattr(self, f"layer{stage}", layer)
        setattr(self, head, nn.Linear(inputs, 10))
        self.head_name = head

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(1, len(self.depths) + 1):
            for block in getattr(self, f"layer{stage}"):
                y = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
                if hasattr(block, "shortcut"):
                    x = block.shortcut(x)
                elif y.shape != x.shape:
                    extra = torch.zeros(len(x), (y.shape[1] - x.shape[1]) // 2, *y.shape[2:])
                    x = torch.cat([extra, x[:, :, ::2, ::2], extra], 1)
                x = F.relu(x + y)
        return getattr(self, self.head_name)(F.avg_pool2d(x, x.shape[-1]).flatten(1))


CIFAR = {
    "resnet8-cifar": ([16, 32, 64], [1, 1, 1], "A", "linear"),
    "resnet20-cifar": ([16, 32, 64], [3, 3, 3], "A", "fc"),
    "resnet14-w8-cifar": ([8, 16, 32], [2, 2, 2], "B", "linear"),
    "resnet18-w16-cifar": ([16, 32, 64, 128], [2, 2, 2, 2], "B", "linear"),
    "resnet-basic-1-1-2-1-w16-cifar": ([16, 32, 48, 96], [1, 1, 2, 1], "B", "linear"),
}


@pytest.mark.parametrize("case", CIFAR)
def test_cifar_networks(case: str, opened: Opened, randomised: Randomised) -> None:
    widths, depths, option, head = CIFAR[case]
    theirs = randomised(Reference(widths, depths, option, head))
    checkpoint = opened(theirs.state_dict(), lambda name: f"state_dict.module.{name}")
    ours = build(checkpoint)
    assert ours.arch == case
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)
    assert ours.size is None
    assert set(ours.names.values()) == set(checkpoint.tensors)
    assert ours.names["fc.weight"] == f"state_dict.module.{head}.weight"
    if option == "B":
        assert ours.names["layer2.0.downsample.0.weight"] == "state_dict.module.layer2.0.shortcut.0.weight"


def test_weights_go_back_under_their_own_names_and_dtypes(opened: Opened) -> None:
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in Reference([4, 8, 16], [1, 1, 1], "B").state_dict().items()
    }
    checkpoint = opened(half, lambda name: f"module.{name}")
    ours = build(checkpoint)
    assert {tensor.dtype for tensor in ours.parameters()} == {torch.float32}
    back = state_for_checkpoint(ours, checkpoint)
    assert back.keys() == checkpoint.tensors.keys()
    for name, tensor in checkpoint.load().items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_files_older_than_the_step_counter_load(opened: Opened) -> None:
    state = Reference([4, 8, 16], [1, 1, 1], "A").state_dict()
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    checkpoint = opened(old)
    assert state_for_checkpoint(build(checkpoint), checkpoint).keys() == old.keys()


def resnet18() -> dict[str, Tensor]:
    with torch.device("meta"):
        return dict(torchvision.models.resnet18(num_classes=4).state_dict())


def with_header(state: dict[str, Tensor]) -> Checkpoint:
    module = nn.Module()
    checkpoint = header_of(module)
    tensors = {name: TensorInfo(name, FLOAT[t.dtype], tuple(t.shape), "m") for name, t in state.items()}
    return replace(checkpoint, tensors=tensors)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"conv1.weight": meta(64, 1, 7, 7)}, "takes 1 input channels; only RGB"),
        ({"linear.weight": meta(4, 512)}, r"does not fit resnet18: unexpected `linear\.weight`"),  # beside `fc.weight`
        (
            {"layer1.0.se.fc1.weight": meta(4, 64)},
            r"does not fit resnet18: unexpected `layer1\.0\.se\.fc1\.weight`; pass",
        ),
        ({"layer3.1.bn2.weight": None}, r"no `layer3\.1\.bn2\.weight`; pass --arch"),
        ({"layer3.1.bn2.bias": meta(9)}, r"`layer3\.1\.bn2\.bias` is \[9\], expected \[256\]; pass --arch"),
        ({"layer2.0.downsample.0.weight": None}, r"`layer2\.0` changes shape and has no shortcut weights; pass --arch"),
        ({"fc.weight": meta(4, 512, dtype=torch.int8)}, r"`fc\.weight` is I8, expected floating point; pass --arch"),
        ({"layer1.0.conv2.weight": meta(64)}, "has no convolutions of a residual block"),
        ({"layer2.1.conv1.weight": meta(2**40, 128, 3, 3)}, "m.safetensors: .*; pass --arch"),
        ({"bn1.weight": None}, r"no known architecture has these tensors \(.*\); pass --arch"),
        ({"fc.weight": None}, "no known architecture"),
    ],
)
def test_other_networks_are_unsupported(changed: dict[str, Tensor | None], message: str) -> None:
    state = {name: tensor for name, tensor in (resnet18() | changed).items() if tensor is not None}
    with pytest.raises(UnsupportedError, match=message) as caught:
        identify(with_header(state))
    assert str(caught.value).isprintable()


def test_hostile_names_are_cleaned_in_the_message() -> None:
    with pytest.raises(UnsupportedError) as caught:
        identify(with_header({"::error::[red]<script>": meta(1)}))
    assert "\n" not in str(caught.value)


@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "published"), [("resnet20-12fca82f", 0.9173), ("resnet32-d509ac18", 0.9263)])
def test_published_accuracy(name: str, published: float, shared_data: Path, tmp_path: Path) -> None:
    import importlib.util

    from audit_cli.checkpoint import open_checkpoint
    from audit_cli.checkpoint.convert import convert

    spec = importlib.util.spec_from_file_location("cifar10_pack", shared_data / "cifar10.py")
    assert spec is not None
    assert spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    images, labels, _ = pack.load("test")
    convert(shared_data / "checkpoints" / f"{name}.th", tmp_path / "m.safetensors")
    with open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        classifier = build(checkpoint).with_normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    pixels = torch.as_tensor(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        guesses = torch.cat([classifier(batch).argmax(1) for batch in pixels.split(500)])
    assert abs((guesses == torch.as_tensor(labels)).float().mean().item() - published) < 0.002
