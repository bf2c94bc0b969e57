"""Torchvision's networks, fitted to the paper's datasets."""

from __future__ import annotations

from torch import nn

# torchvision takes five seconds to import, hence inside the functions


def vgg16bn(image: tuple[int, int, int], classes: int) -> nn.Module:
    """VGG-16 with batch norm and one linear layer, for 32 px; 14,728,266 parameters for CIFAR-10."""
    from torchvision.models import vgg

    features = vgg.make_layers(vgg.cfgs["D"], batch_norm=True)
    if image[0] != 3 or min(image[1:]) < 32:
        raise ValueError("it needs colour images of at least 32x32")
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


def densenet121(image: tuple[int, int, int], classes: int) -> nn.Module:
    """DenseNet-121 with a 3x3 stem and no first pooling, for 32 px; 6,956,298 parameters for CIFAR-10."""
    from torchvision.models import DenseNet

    network = DenseNet(32, (6, 12, 24, 16), 64, num_classes=classes)
    network.features.conv0 = nn.Conv2d(image[0], 64, 3, padding=1, bias=False)
    for name in ("norm0", "relu0", "pool0"):
        delattr(network.features, name)
    if min(image[1:]) < 8:
        raise ValueError("it needs at least 8x8")
    return network


def resnet34(image: tuple[int, int, int], classes: int) -> nn.Module:
    """Torchvision's ResNet-34, for Imagenette; 21,289,802 parameters for 10 classes."""
    from torchvision import models

    if image[0] != 3 or min(image[1:]) < 64:
        raise ValueError("it needs colour images of at least 64x64")
    return models.resnet34(num_classes=classes)
