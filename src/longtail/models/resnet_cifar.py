"""ResNets for 32x32 images (depth 20, 32, 44, 56 or 110): He et al., 2016, section 4.2."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

from longtail.utils.errors import InputError

BLOCKS_PER_STAGE = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18}
WIDTHS = (16, 32, 64)


class PaddedShortcut(nn.Module):
    """Shortcut "option A": subsampling, then zero channels, half of them on each side. No parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.padding = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride)."""
        # Every stride-th pixel. The gradient of slicing would fill a tensor with zeros for each dimension.
        x = F.avg_pool2d(x, kernel_size=1, stride=self.stride)
        return F.pad(x, (0, 0, 0, 0, self.padding, self.padding))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        same = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if same else PaddedShortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, channels, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)  # in place: the gradient of a batch norm does not need its output
        return F.relu(out, inplace=True)


class CifarResNet(nn.Module):
    """Images (B, 3, H, W) -> pooled features (B, widths[-1]); H and W are at least 4.

    Args:
        blocks: residual blocks in each of the three stages, ``(depth - 2) / 6``.
        widths: channels of the three stages. Option-A shortcuts pad or cut both sides by the same number of channels,
            so widths of successive stages must differ by an even number.

    Raises:
        InputError: the widths do not fit option-A shortcuts.
    """

    def __init__(self, blocks: int, widths: Sequence[int] = WIDTHS):
        super().__init__()
        if min(widths) < 1:
            raise InputError(f"widths {tuple(widths)}: each must be at least 1")
        for before, after in pairwise(widths):
            if (after - before) % 2:
                raise InputError(
                    f"widths {tuple(widths)}: neighbours must differ by even numbers, {before} -> {after} do not"
                )
        self.num_features = widths[-1]
        # Has the same format as in timm; `split_backbone` finds the stages by these names.
        self.feature_info = [
            {"module": f"layer{stage + 1}", "num_chs": width, "reduction": 2**stage}
            for stage, width in enumerate(widths)
        ]
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = _stage(blocks, widths[0], widths[0], stride=1)
        self.layer2 = _stage(blocks, widths[0], widths[1], stride=2)
        self.layer3 = _stage(blocks, widths[1], widths[2], stride=2)
        self.global_pool = SelectAdaptivePool2d(flatten=True)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, widths[-1])."""
        pooled: Tensor = self.global_pool(self.forward_features(x))
        return pooled

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, widths[-1], H / 4, W / 4)."""
        x = self.act1(self.bn1(self.conv1(x)))
        features: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return features


def _stage(blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))
