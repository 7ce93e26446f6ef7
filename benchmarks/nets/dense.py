"""Networks whose answer is a map, boxes, or a comparison: U-Net, detector, autoencoder, segmentation, siamese, branching."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.nets.blocks import channels, conv_bn
from benchmarks.nets.convolution import BasicBlock


class Unet(nn.Module):
    """Encoder, decoder, and skips between them (Ronneberger et al. 2015)."""

    def __init__(self, width: float, classes: int = 4) -> None:
        super().__init__()
        widths = [channels(base, width) for base in (64, 128, 256, 512)]
        self.down = nn.ModuleList(_double(a, b) for a, b in zip([3, *widths[:-1]], widths, strict=True))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.lift = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairs)
        self.up = nn.ModuleList(_double(2 * b, b) for _, b in pairs)
        self.last = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W]`` to ``[N, classes, H, W]``."""
        kept: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for lift, block, skip in zip(self.lift, self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([lift(x), skip], 1))
        result: Tensor = self.last(x)
        return result


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv_bn(inputs, outputs, act=nn.ReLU()), conv_bn(outputs, outputs, act=nn.ReLU()))


class Bottleneck(nn.Module):
    """Two convolutions with a skip."""

    def __init__(self, width: int, skip: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(width, width, act=nn.SiLU()), conv_bn(width, width, act=nn.SiLU()))
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        y: Tensor = self.body(x)
        return x + y if self.skip else y


class Csp(nn.Module):
    """Cross-stage partial block of the YOLOv8 kind: split, a chain whose every step is kept, concatenate."""

    def __init__(self, inputs: int, outputs: int, repeats: int, skip: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.first = conv_bn(inputs, 2 * half, 1, act=nn.SiLU())
        self.blocks = nn.ModuleList(Bottleneck(half, skip) for _ in range(repeats))
        self.last = conv_bn((2 + repeats) * half, outputs, 1, act=nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        """``outputs`` channels."""
        parts = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        result: Tensor = self.last(torch.cat(parts, 1))
        return result


class Sppf(nn.Module):
    """Poolings of growing reach, concatenated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = conv_bn(width, width // 2, 1, act=nn.SiLU())
        self.last = conv_bn(2 * width, width, 1, act=nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(nn.functional.max_pool2d(parts[-1], 5, 1, 2))
        result: Tensor = self.last(torch.cat(parts, 1))
        return result


class Detector(nn.Module):
    """A YOLO-style detector: CSP backbone, SPPF, path aggregation, three heads whose boxes are decoded in the graph."""

    def __init__(self, width: float, classes: int = 8) -> None:
        super().__init__()
        a, b, c, d, e = (channels(base, width, 16) for base in (32, 64, 128, 256, 512))
        act = nn.SiLU()
        self.stem = nn.Sequential(conv_bn(3, a, 3, 2, act=act), conv_bn(a, b, 3, 2, act=act), Csp(b, b, 1))
        self.third = nn.Sequential(conv_bn(b, c, 3, 2, act=act), Csp(c, c, 2))
        self.fourth = nn.Sequential(conv_bn(c, d, 3, 2, act=act), Csp(d, d, 2))
        self.fifth = nn.Sequential(conv_bn(d, e, 3, 2, act=act), Csp(e, e, 1), Sppf(e))
        self.up4, self.up3 = Csp(e + d, d, 1, skip=False), Csp(d + c, c, 1, skip=False)
        self.down4, self.down5 = conv_bn(c, c, 3, 2, act=act), conv_bn(d, d, 3, 2, act=act)
        self.out4, self.out5 = Csp(c + d, d, 1, skip=False), Csp(d + e, e, 1, skip=False)
        self.heads = nn.ModuleList(nn.Conv2d(width, 4 + classes, 1) for width in (c, d, e))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[N, 3, S, S]`` to ``[N, cells, 4 + classes]`` at strides 8, 16 and 32: centre, size, scores."""
        p3 = self.third(self.stem(x))
        p4 = self.fourth(p3)
        p5 = self.fifth(p4)
        n4 = self.up4(torch.cat([nn.functional.interpolate(p5, scale_factor=2.0), p4], 1))
        n3 = self.up3(torch.cat([nn.functional.interpolate(n4, scale_factor=2.0), p3], 1))
        m4 = self.out4(torch.cat([self.down4(n3), n4], 1))
        m5 = self.out5(torch.cat([self.down5(m4), p5], 1))
        maps = [head(y) for head, y in zip(self.heads, (n3, m4, m5), strict=True)]
        return _boxes(maps[0], 8), _boxes(maps[1], 16), _boxes(maps[2], 32)


def _boxes(raw: Tensor, stride: int) -> Tensor:
    rows, columns = raw.shape[-2:]
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    cell = torch.stack([x, y]).float()[None]
    centre = (raw[:, :2].sigmoid() * 2 - 0.5 + cell) * stride
    size = (raw[:, 2:4].sigmoid() * 2) ** 2 * stride
    return torch.cat([centre, size, raw[:, 4:].sigmoid()], 1).flatten(2).transpose(1, 2)


def autoencoder(width: float) -> nn.Module:
    """Strided convolutions to a narrow waist and back."""
    a, b, c = (channels(base, width) for base in (32, 64, 128))
    down = [conv_bn(3, a, 3, 2, act=nn.ReLU()), conv_bn(a, b, 3, 2, act=nn.ReLU()), conv_bn(b, c, 3, 2, act=nn.ReLU())]
    waist = [nn.Conv2d(c, 4, 1), nn.Tanh(), conv_bn(4, c, 1, act=nn.ReLU())]
    up = [
        nn.ConvTranspose2d(c, b, 4, 2, 1),
        nn.LeakyReLU(0.1),
        nn.ConvTranspose2d(b, a, 4, 2, 1),
        nn.LeakyReLU(0.1),
        nn.ConvTranspose2d(a, 3, 4, 2, 1),
        nn.Sigmoid(),
    ]
    return nn.Sequential(*down, *waist, *up)


class Segmentation(nn.Module):
    """ResNet encoder, atrous pyramid, bilinear resize to the picture (DeepLabV3, Chen et al. 2017)."""

    def __init__(self, width: float, classes: int = 6) -> None:
        super().__init__()
        a, b, c = (channels(base, width) for base in (64, 128, 256))
        self.encoder = nn.Sequential(
            conv_bn(3, a, 7, 2, act=nn.ReLU()), BasicBlock(a, a, 1), BasicBlock(a, b, 2), BasicBlock(b, c, 2)
        )
        self.pyramid = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, b, 3, padding=rate, dilation=rate, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for rate in (2, 4, 6)
        )
        self.point, self.pooled = conv_bn(c, b, 1, act=nn.ReLU()), nn.Conv2d(c, b, 1)
        self.project, self.last = conv_bn(5 * b, b, 1, act=nn.ReLU()), nn.Conv2d(b, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W]`` to ``[N, classes, H, W]``."""
        y = self.encoder(x)
        far = self.pooled(y.mean((2, 3), keepdim=True)).relu()
        far = nn.functional.interpolate(far, size=y.shape[-2:], mode="bilinear", align_corners=False)
        y = torch.cat([self.point(y), *(branch(y) for branch in self.pyramid), far], 1)
        y = self.last(self.project(y))
        return nn.functional.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


class Siamese(nn.Module):
    """One encoder for a part and its reference; the answer is from both embeddings."""

    def __init__(self, width: float) -> None:
        super().__init__()
        a, b, c = (channels(base, width) for base in (32, 64, 128))
        self.encoder = nn.Sequential(
            conv_bn(3, a, 3, 2, act=nn.ReLU()), BasicBlock(a, b, 2), BasicBlock(b, c, 2), nn.AdaptiveAvgPool2d(1)
        )
        self.judge = nn.Sequential(nn.Linear(2 * c, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, part: Tensor, reference: Tensor) -> Tensor:
        """Two pictures ``[N, 3, H, W]`` to ``[N, 2]``."""
        left, right = self.encoder(part).flatten(1), self.encoder(reference).flatten(1)
        result: Tensor = self.judge(torch.cat([(left - right).abs(), left * right], 1))
        return result


class Branching(nn.Module):
    """A net that sharpens dim batches: ``torch.cond`` becomes an ONNX ``If`` in the middle of the graph."""

    def __init__(self, width: float, classes: int = 10) -> None:
        super().__init__()
        a, b = channels(32, width), channels(64, width)
        self.first, self.second = conv_bn(3, a, 3, 2, act=nn.ReLU()), conv_bn(a, b, 3, 2, act=nn.ReLU())
        self.linear = nn.Linear(b, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W]`` to logits."""
        y = self.first(x)
        y = torch.cond(x.mean() > 0, _sharpen, _keep, (y,))
        result: Tensor = self.linear(self.second(y).mean((2, 3)))
        return result


def _sharpen(y: Tensor) -> Tensor:
    return y * 2.0 - nn.functional.avg_pool2d(y, 3, 1, 1)


def _keep(y: Tensor) -> Tensor:
    return y * 1.0
