"""Every setting once: typed, documented under its field, checked when it is made. Imports no torch."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from longtail.training.schedules import epoch_of
from longtail.utils.errors import InputError


def _require(condition: bool, setting: str, value: object, right: str) -> None:
    if not condition:
        raise InputError(f"{setting} is {value!r}; it must be {right}")


def _require_usable(name: str, value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _require_usable(f"{name}.{key}".lstrip("."), item)
    elif isinstance(value, list | tuple):
        for item in value:
            _require_usable(name, item)
    elif isinstance(value, str):
        _require("\0" not in value, name, value, "without null characters")
    elif isinstance(value, float):
        _require(math.isfinite(value), name, value, "finite")


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how they are split."""

    name: Literal["digits", "cifar10", "cifar100", "folder", "list", "imagenet-lt", "inaturalist2018", "places-lt"] = (
        "digits"
    )
    """The data set. digits is built in; folder is one folder per class; list reads the three list files below."""

    root: str = "data"
    """Folder of the images (not used by digits). Paths in list files start here."""

    train_list: str | None = None
    """List file of the training images, one 'path label' a line; relative to root. Only for name 'list'."""

    val_list: str | None = None
    """List file of the validation images. Only for name 'list'."""

    test_list: str | None = None
    """List file of the test images. Only for name 'list'."""

    class_names: str | None = None
    """File with one class name a line, in the order of the labels; relative to root. Only for list files."""

    allow_outside_root: bool = False
    """Let the paths of list files be absolute or lead out of root by '..'. The paths' text is what is checked: a link
    inside root may lead anywhere, because whoever can make one could as well copy the picture."""

    on_corrupt_image: Literal["error", "skip"] = "error"
    """What to do with image files that do not decode. skip decodes all of them once before training, leaves those out
    and lists them in the run's skipped_images.txt."""

    max_corrupt_images: float = 0.01
    """Largest share of the images that skip leaves out; more is an error."""

    imbalance: Literal["none", "exponential", "step"] = "none"
    """How the training images are thinned out to make a long tail."""

    imbalance_factor: float = 0.01
    """Images of the rarest class divided by those of the most common one."""

    subset_seed: int = 0
    """Seed that chooses the long-tailed subset and every held-out part, apart from the training seed."""

    val_fraction: float = 0.0
    """Shard of each class's training images held out for validation where the data set has no validation part."""

    val_spare: int = 0
    """Images of each class for validation, of those that the long tail leaves out, as far as there are any; none where
    val_fraction is set."""

    test_fraction: float = 0.2
    """Shard of each class's images held out for testing where a folder has no test part."""

    image_size: int | None = None
    """Height and width in pixels that images are brought to; unset: as they are (digits 8, CIFAR 32), pictures to what
    the backbone was published with."""

    resize: int | None = None
    """Shorter side in pixels before the central crop to image_size, for image files; unset: image_size * 256 / 224."""

    interpolation: Literal["bilinear", "bicubic"] | None = None
    """How pictures are resized; unset: as the backbone was published with."""

    mean: tuple[float, float, float] | None = None
    """Subtracted from red, green and blue (0 to 1); unset: what the backbone was published with, or ImageNet's."""

    std: tuple[float, float, float] | None = None
    """Divides red, green and blue afterwards; unset: likewise."""

    cache_gib: float = 2.0
    """Image files are decoded once and kept when all of them fit into this much memory, and neither crop 'resized' nor
    rand_augment needs them anew.
    They are then augmented in batches: the same distribution, other random numbers. Each of several processes keeps its
    own."""

    workers: int = 2
    """Processes that decode image files, at most one for each processor; 0 decodes in the main process."""

    def __post_init__(self) -> None:
        factor = self.imbalance_factor
        hint = f" (for 'imbalance {factor:g}' write {1 / factor:g})" if factor > 1 else ""
        _require(0 < factor <= 1, "data.imbalance_factor", factor, "above 0 and at most 1" + hint)
        for name in ("val_fraction", "test_fraction"):
            _require(0 <= getattr(self, name) < 1, f"data.{name}", getattr(self, name), "at least 0 and below 1")
        _require(self.val_spare >= 0, "data.val_spare", self.val_spare, "0 or more")
        for name in ("image_size", "resize"):
            value = getattr(self, name)
            _require(value is None or 4 <= value <= 4096, f"data.{name}", value, "from 4 to 4096 pixels, or unset")
        if self.resize is not None and self.image_size is not None:
            right = f"at least data.image_size, {self.image_size}"
            _require(self.resize >= self.image_size, "data.resize", self.resize, right)
        _require(0 <= self.subset_seed < 2**32, "data.subset_seed", self.subset_seed, "from 0 to 2^32 - 1")
        _require(self.std is None or min(self.std) > 0, "data.std", self.std, "three numbers above 0, or unset")
        _require(
            0 <= self.max_corrupt_images <= 1,
            "data.max_corrupt_images",
            self.max_corrupt_images,
            "a share, from 0 to 1",
        )
        _require(self.workers >= 0, "data.workers", self.workers, "0 or more")
        _require(self.cache_gib >= 0, "data.cache_gib", self.cache_gib, "0 or more")
        if self.name == "list":
            for name in ("train_list", "test_list"):
                _require(getattr(self, name) is not None, f"data.{name}", None, "a file when data.name is 'list'")


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes to training images."""

    crop: Literal["none", "padded", "resized"] = "padded"
    """padded: shift by up to padding pixels, filling with black; resized: a random part, brought to image_size."""

    padding: int = 4
    """Pixels added on every side before a padded crop."""

    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the picture's area in a resized crop."""

    fast_crops: bool = True
    """Make resized crops of image files the fast way: the same crops, but JPEGs are decoded at a half, a quarter or an
    eighth of their size where the crop keeps image_size pixels, and torch resizes. false: torchvision's transforms of
    PIL pictures, each decoded in full. Test images are always decoded in full."""

    flip: bool = True
    """Mirror every other image, left to right."""

    rotation: float = 15.0
    """Largest angle, in degrees to either side; nearest pixel, corners filled with black."""

    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Strength of the changes of brightness, contrast, saturation and hue. Only with resized crops."""

    rand_augment: str | None = None
    """RandAugment in timm's notation, such as rand-m9-mstd0.5-inc1 (Swin's). Only for image files."""

    random_erasing: float = 0.0
    """Shard of the images in which a rectangle becomes noise."""

    mixup: float = 0.0
    """Mix pairs of images, and their targets, in shares from Beta(mixup, mixup); 0: do not."""

    cutmix: float = 0.0
    """Paste a rectangle of one image into another, its area from Beta(cutmix, cutmix), and mix targets likewise; 0: do
    not. With mixup, each batch gets one of the two at random."""

    def __post_init__(self) -> None:
        _require(self.padding >= 0, "augmentation.padding", self.padding, "0 or more")
        _require(0 <= self.rotation <= 180, "augmentation.rotation", self.rotation, "from 0 to 180 degrees")
        smallest, largest = self.scale
        _require(
            0 < smallest <= largest <= 1, "augmentation.scale", self.scale, "two numbers, 0 < first <= second <= 1"
        )
        jitter = self.color_jitter
        _require(
            min(jitter) >= 0 and jitter[3] <= 0.5, "augmentation.color_jitter", jitter, "at least 0, hue up to 0.5"
        )
        _require(
            self.crop == "resized" or not any(jitter), "augmentation.color_jitter", jitter, "0 unless crop is 'resized'"
        )
        erasing = self.random_erasing
        _require(0 <= erasing <= 1, "augmentation.random_erasing", erasing, "from 0 to 1")
        for name in ("mixup", "cutmix"):
            _require(getattr(self, name) >= 0, f"augmentation.{name}", getattr(self, name), "0 or more")


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    backbone: str = "resnet32"
    """Network that trunk and branches are cut from: resnet20, 32, 44, 56 or 110 for small images, resnet10, or any
    hierarchical network or plain vision transformer of timm."""

    pretrained: bool | str = False
    """Start from timm's published weights (true), or from those in a file; narrowed stages start afresh."""

    expert_stages: int | None = None
    """Last stages that belong to each expert; unset: 2, and a quarter of the blocks of plain vision transformers."""

    num_experts: int = 3
    """Experts."""

    width: Literal["narrow", "full"] | list[int] = "narrow"
    """Channels of the last two stages: narrow (three quarters), full, or the numbers themselves."""

    head: Literal["cosine", "linear"] = "cosine"
    """Classifier of each expert."""

    scale: float = 30.0
    """What a cosine head multiplies cosines by; margins of the loss are in its units."""

    drop_rate: float = 0.0
    """Dropout before the classifiers, in networks of timm."""

    drop_path_rate: float = 0.0
    """Stochastic depth: share of images for which the last block is skipped, earlier ones less; in networks of timm."""

    def __post_init__(self) -> None:
        stages = self.expert_stages
        _require(stages is None or stages >= 1, "model.expert_stages", stages, "at least 1, or unset")
        _require(self.num_experts >= 1, "model.num_experts", self.num_experts, "at least 1")
        _require(self.scale > 0, "model.scale", self.scale, "above 0")
        for name in ("drop_rate", "drop_path_rate"):
            _require(0 <= getattr(self, name) < 1, f"model.{name}", getattr(self, name), "at least 0 and below 1")


@dataclass(frozen=True)
class LossConfig:
    """What the experts are trained for."""

    name: Literal["cross_entropy", "focal", "logit_adjustment", "ldam", "ride"] = "ride"
    """cross_entropy; focal counts less what is classified well already; logit_adjustment knows the classes' shares
    (balanced softmax, SADE, BalPoE: see prior_exponents); ldam adds margins that grow with rarity; ride adds diversity
    between experts to that."""

    focal_gamma: float = 2.0
    """How much less focal counts it: by (1 - probability)^gamma."""

    prior_exponents: list[float] = field(default_factory=lambda: [1.0])
    """Times that logit_adjustment adds the logarithms of the classes' shares of the training images to the logits in
    training, one number or one for each expert. 1: balanced softmax; 0, 1, 2: BalPoE."""

    inverse_exponents: list[float] = field(default_factory=lambda: [0.0])
    """Likewise with the shares exchanged, so that the commonest class has the rarest one's; 0, 0, -2 with
    prior_exponents 0, 1, 1: SADE."""

    max_margin: float = 0.5
    """Margin of the rarest class, as a cosine."""

    reweight_after: float | None = 0.8
    """Last epoch without class weights (deferred re-weighting): an epoch, or a share of all epochs if below 1."""

    reweight_beta: float = 0.9999
    """Class weights are (1 - beta) / (1 - beta^n) for a class of n images, scaled to mean 1."""

    diversity_factor: float = -0.45
    """Weight of the divergence between each expert and the ensemble; negative rewards diversity."""

    diversity_mean: bool = False
    """Average the divergence over experts, as RIDE-Swin does, instead of summing it."""

    diversity_temperature: float = 1.0
    """Temperature of that divergence."""

    temperature_spread: float = 0.05
    """How far a class's temperature follows its share of the images after reweight_after (RIDE's reweight_factor)."""

    collaborative: bool = False
    """Train the experts' mean logits together instead of each expert on its own."""

    label_smoothing: float = 0.0
    """Probability taken from the targets and spread over all classes."""

    def __post_init__(self) -> None:
        _require(self.focal_gamma >= 0, "loss.focal_gamma", self.focal_gamma, "0 or more")
        _require(self.max_margin >= 0, "loss.max_margin", self.max_margin, "0 or more")
        _require(
            self.reweight_after is None or self.reweight_after >= 0,
            "loss.reweight_after", self.reweight_after, "0 or more, or null for never",
        )  # fmt: skip
        _require(0 <= self.reweight_beta < 1, "loss.reweight_beta", self.reweight_beta, "at least 0 and below 1")
        _require(self.diversity_temperature > 0, "loss.diversity_temperature", self.diversity_temperature, "above 0")
        _require(0 <= self.temperature_spread <= 1, "loss.temperature_spread", self.temperature_spread, "from 0 to 1")
        _require(0 <= self.label_smoothing < 1, "loss.label_smoothing", self.label_smoothing, "at least 0 and below 1")


@dataclass(frozen=True)
class TrainingConfig:
    """Optimiser and schedule."""

    epochs: int = 200
    """Passes over the training images. The last one is the result."""

    batch_size: int = 128
    """Images in a step of the optimiser, of all processes together."""

    sampling: Literal["shuffled", "instance", "square-root", "class-balanced", "progressive"] = "shuffled"
    """shuffled: every image once an epoch. Others draw as many images, classes being as likely as their numbers of
    images (instance), the roots of these (square-root), or all alike (class-balanced); progressive goes from the first
    to the last in the course of training. Decoupling (Kang et al., 2020), section 3."""

    accumulation: int = 1
    """Parts that each process computes its share of a batch in, one after the other, to need less memory. The gradient
    is that of the whole batch, but for batch norms, which average over a part."""

    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """Of matrix products and convolutions in training; weights, heads and losses stay float32. Tests are in float32."""

    tf32: bool = True
    """Let float32 products on NVIDIA GPUs keep 10 bits of each factor, which is several times faster."""

    compile: bool = False
    """Compile trunk and branches for training with torch.compile: minutes at the start, faster steps on GPUs."""

    sync_batch_norm: bool = False
    """Batch norms average over all processes, as one process with the whole batch would. On GPUs."""

    checkpoint_every: float = 5.0
    """Minutes between two checkpoints, from which an interrupted run goes on exactly; 0: after every step. One is also
    saved when a signal asks to stop."""

    checkpoint_activations: bool = False
    """Compute activations again for the gradient instead of keeping them: less memory, about a third more time."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd has the momentum below; adamw has betas 0.9 and 0.999."""

    learning_rate: float = 0.1
    """Learning rate after warm-up."""

    learning_rate_batch: int | None = None
    """Number of images in a batch that the learning rates are for: they grow with batch_size. Unset: for any."""

    trunk_learning_rate: float = 1.0
    """Factor on the trunk's learning rate; below 1 where it starts from pretrained weights."""

    momentum: float = 0.9
    """Momentum of sgd."""

    nesterov: bool = True
    """Nesterov's form of momentum."""

    weight_decay: float = 5e-4
    """Weight decay."""

    decay_vectors: bool = True
    """Weight decay on biases, norms and position tables too; customary for sgd, not for adamw."""

    clip_gradient: float | None = None
    """Largest norm of the gradient of all parameters together; unset: any."""

    schedule: Literal["step", "cosine"] = "step"
    """step multiplies the rate by decay at each milestone; cosine lowers it smoothly to final_learning_rate."""

    milestones: list[float] = field(default_factory=lambda: [0.8, 0.9])
    """Epochs completed before each decay; below 1: shares of all epochs."""

    decay: float = 0.01
    """Factor at each milestone."""

    warmup: float = 0.025
    """Epochs in which the rate climbs to its value; below 1: a share of all epochs."""

    warmup_learning_rate: float = 0.0
    """Where the climb begins with the cosine schedule."""

    final_learning_rate: float = 0.0
    """Where cosine ends."""

    validate_every: int = 0
    """Epochs between two looks at the validation part; 0: only at the end. They choose nothing."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation"):
            _require(getattr(self, name) >= 1, f"training.{name}", getattr(self, name), "at least 1")
        right = "false where training.checkpoint_activations is true"
        _require(not (self.compile and self.checkpoint_activations), "training.compile", True, right)
        _require(self.checkpoint_every >= 0, "training.checkpoint_every", self.checkpoint_every, "0 or more")
        rates = ("final_learning_rate", "warmup_learning_rate", "trunk_learning_rate")
        for name in ("momentum", "weight_decay", "warmup", "validate_every", *rates):
            _require(getattr(self, name) >= 0, f"training.{name}", getattr(self, name), "0 or more")
        for name in ("learning_rate_batch", "clip_gradient"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"training.{name}", value, "above 0, or unset")
        _require(
            self.accumulation <= self.batch_size,
            "training.accumulation", self.accumulation, f"at most training.batch_size, {self.batch_size}",
        )  # fmt: skip
        _require(self.momentum < 1, "training.momentum", self.momentum, "below 1")
        _require(self.momentum > 0 or not self.nesterov, "training.nesterov", True, "false where momentum is 0")
        _require(self.learning_rate > 0, "training.learning_rate", self.learning_rate, "above 0")
        _require(0 < self.decay <= 1, "training.decay", self.decay, "above 0 and at most 1")
        resolved = [epoch_of(milestone, self.epochs) for milestone in self.milestones]
        ascending = all(milestone >= 0 for milestone in resolved) and resolved == sorted(resolved)
        _require(
            ascending, "training.milestones", self.milestones, "epochs or shares of all epochs, in ascending order"
        )


@dataclass(frozen=True)
class DistillationConfig:
    """How a teacher is followed, where there is one."""

    temperature: float = 1.5
    """Temperature of both distributions."""

    factor: float = 1.0
    """Weight of the distance to the teacher."""

    published: bool = False
    """RIDE's own arithmetic: the distance of the experts' mean logits, and the whole loss once per expert. Otherwise
    each expert has its own distance and the loss counts once."""

    def __post_init__(self) -> None:
        _require(self.temperature > 0, "distillation.temperature", self.temperature, "above 0")
        _require(self.factor >= 0, "distillation.factor", self.factor, "0 or more")


@dataclass(frozen=True)
class ClassifierConfig:
    """After the experts: other classifiers on their features, while all else stays.

    Decoupling (Kang et al., 2020), section 4. Step sizes are those of the original code for ImageNet-LT.
    """

    method: Literal["none", "retrain", "scale", "tau", "nearest-mean"] = "none"
    """retrain: drawn anew and trained on class-balanced draws (cRT); scale: the experts' own, with a factor for each
    class that is trained so (LWS); tau: their weights divided by their lengths to the power of tau; nearest-mean: the
    class whose mean feature is nearest (NCM). scale and tau are for linear heads."""

    epochs: int = 50
    """Of retrain and scale, of as many draws as there are training images, as in the original. There they are 10 and 5
    for ImageNet-LT, which are 2,260 and 1,130 steps. 50 epochs of CIFAR-100-LT are 1,100; for large data take fewer."""

    views: int = 10
    """Passes over the training images for them, each with random changes of its own, that the epochs take turns with;
    in the original each epoch has its own."""

    batch_size: int = 512
    """Draws in a step of sgd, with momentum 0.9."""

    learning_rate: float = 0.2
    """At the start; cosine to 0."""

    weight_decay: float = 5e-4
    """Weight decay."""

    cache_gib: float = 4.0
    """What the experts say in these passes is kept if it takes at most this much memory; otherwise there is a pass in
    every epoch."""

    tau: float | None = None
    """Exponent of tau; unset: the best of 0, 0.1, ..., 2 on the validation images, by balanced accuracy."""

    distance: Literal["cosine", "centred cosine", "euclidean"] = "cosine"
    """What is nearest to nearest-mean: the smallest angle, the smallest angle as seen from the mean of all images, or
    the smallest distance."""

    def __post_init__(self) -> None:
        for name in ("epochs", "views", "batch_size"):
            _require(getattr(self, name) >= 1, f"classifier.{name}", getattr(self, name), "at least 1")
        _require(self.learning_rate > 0, "classifier.learning_rate", self.learning_rate, "above 0")
        for name in ("weight_decay", "cache_gib"):
            _require(getattr(self, name) >= 0, f"classifier.{name}", getattr(self, name), "0 or more")
        _require(self.tau is None or self.tau >= 0, "classifier.tau", self.tau, "0 or more, or unset")


@dataclass(frozen=True)
class RouterConfig:
    """The last stage: the router, which shows an image to as few experts as it needs."""

    train: bool = False
    """Train a router after the experts and their classifiers."""

    top_choices: int = 30
    """How many of the largest mean logits it sees (RIDE: 30 for CIFAR, 50 for a thousand classes and more)."""

    hidden: int = 16
    """Numbers that it makes of an expert's feature."""

    shared: bool = True
    """One last layer for all steps, or one for each."""

    positive_weight: float = 100.0
    """What an image that gains by another expert counts, against 1 of one that does not. Hardly matters where the
    threshold is chosen; where it is not, the higher the more experts are asked."""

    epochs: int = 50
    """Passes over as many class-balanced draws as there are training images (RIDE: 5, which is too few)."""

    batch_size: int = 512
    """Draws in a step of sgd, with momentum 0.9 in Nesterov's form."""

    learning_rate: float = 0.01
    """At the start; cosine to 0."""

    weight_decay: float = 5e-4
    """Weight decay."""

    cache_gib: float = 4.0
    """What the experts say of the training images is computed once and kept if it takes at most this much memory;
    otherwise anew in every epoch."""

    threshold: float = 0.5
    """An image goes on to the next expert while the router's probability is above this, if nothing below is set."""

    compute_budget: float | str | None = None
    """Choose the threshold on the validation images: the best for this mean cost. 1.2: times that of one expert; 70M or
    4.1G: multiply-accumulates."""

    max_accuracy_drop: float | None = None
    """Choose the threshold on the validation images: the cheapest that loses at most so many percentage points of
    balanced accuracy against all experts."""

    def __post_init__(self) -> None:
        for name in ("top_choices", "hidden", "epochs", "batch_size"):
            _require(getattr(self, name) >= 1, f"router.{name}", getattr(self, name), "at least 1")
        for name in ("positive_weight", "learning_rate"):
            _require(getattr(self, name) > 0, f"router.{name}", getattr(self, name), "above 0")
        for name in ("weight_decay", "cache_gib"):
            _require(getattr(self, name) >= 0, f"router.{name}", getattr(self, name), "0 or more")
        _require(0 <= self.threshold <= 1, "router.threshold", self.threshold, "from 0 to 1")
        drop = self.max_accuracy_drop
        _require(drop is None or drop >= 0, "router.max_accuracy_drop", drop, "0 or more, or unset")
        _require(
            drop is None or self.compute_budget is None,
            "router.max_accuracy_drop", drop, "unset where router.compute_budget is set: one of them chooses",
        )  # fmt: skip


@dataclass(frozen=True)
class EvaluationConfig:
    """How results are pluralize."""

    many_above: int = 100
    """Many-shot classes have more training images than this (RIDE: 100; RIDE-Swin: 99)."""

    few_below: int = 20
    """Few-shot classes have fewer training images than this (RIDE: 20; RIDE-Swin: 21)."""

    average: Literal["logits", "probabilities"] = "logits"
    """What of the experts is averaged to make the ensemble's answer (RIDE: logits). The model keeps it, so that whoever
    uses it gets the answers that were tested; experts are trained alike with both, a router for the one that is set."""

    batch_size: int = 256
    """Images in an evaluation step."""

    calibration_bins: int = 15
    """Bins of equal width for the expected calibration error."""

    def __post_init__(self) -> None:
        _require(
            0 <= self.few_below <= self.many_above + 1,
            "evaluation.few_below", self.few_below, f"from 0 to many_above + 1 ({self.many_above + 1})",
        )  # fmt: skip
        for name in ("batch_size", "calibration_bins"):
            _require(getattr(self, name) >= 1, f"evaluation.{name}", getattr(self, name), "at least 1")


@dataclass(frozen=True)
class Config:
    """A whole run. Recipes are YAML files with what differs from these defaults."""

    name: str = "longtail"
    """Name of the run, also of its folder."""

    seed: int = 0
    """Seed of initial weights, order of images and augmentation."""

    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""

    teacher: str | None = None
    """What the experts are distilled from: a run folder, a model file, a checkpoint of the original, or a recipe (name
    or file), which is trained first, on the same data, into the folder teacher of the run."""

    data: DataConfig = field(default_factory=DataConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 2^32 - 1")
        _require_usable("", asdict(self))
        epochs, right = self.training.epochs, f"at most training.epochs, {self.training.epochs}, or a share below 1"
        for milestone in self.training.milestones:
            _require(milestone <= epochs, "training.milestones", self.training.milestones, right)
        _require(self.training.warmup <= epochs, "training.warmup", self.training.warmup, right)
        after = self.loss.reweight_after
        _require(after is None or after <= epochs, "loss.reweight_after", after, right)
        router, experts = self.router.train, self.model.num_experts
        if self.loss.name == "logit_adjustment":
            for name in ("prior_exponents", "inverse_exponents"):
                exponents = getattr(self.loss, name)
                right = f"one number, or one for each expert: {experts}"
                _require(len(exponents) in (1, experts), f"loss.{name}", exponents, right)
        method, head = self.classifier.method, self.model.head
        right = "none, retrain or nearest-mean where model.head is 'cosine', whose class weights have no length"
        _require(head == "linear" or method not in ("scale", "tau"), "classifier.method", method, right)
        _require(not router or experts > 1, "router.train", router, "false where there is one expert")
