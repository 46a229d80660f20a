"""Names that several packages accept: each choice of the settings that other code takes too. Imports no torch."""

from typing import Literal

Average = Literal["logits", "probabilities"]
"""What an ensemble averages"""

Crop = Literal["none", "padded", "resized"]
"""Random crop of training images"""

Distance = Literal["cosine", "centred cosine", "euclidean"]
"""Of features from the class means"""

HeadKind = Literal["cosine", "linear"]

Interpolation = Literal["bilinear", "bicubic"]
"""Of a resize"""

Policy = Literal["none", "cifar10", "imagenet", "svhn"]
"""The data set that a policy of AutoAugment was found on"""

Precision = Literal["float32", "bf16", "fp16"]
"""Of matrix products and convolutions"""

Profile = Literal["exponential", "step"]
"""Of the class counts of a long-tailed subset"""

Sampling = Literal["instance", "square-root", "class-balanced", "progressive"]
"""Which class is drawn how often"""

TrainedParts = Literal["all", "experts", "heads", "lora"]

Views = Literal["one", "flip", "five-crop", "ten-crop"]
"""Test-time views of an image"""
