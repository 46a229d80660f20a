"""Every setting: its type, default, bounds and documentation. Imports no torch."""

import math
import operator
from dataclasses import dataclass, field, fields
from types import NoneType
from typing import Literal, TypeVar, get_args

from longtail.utils.choices import (
    Average,
    Crop,
    Distance,
    HeadKind,
    Interpolation,
    Policy,
    Precision,
    Profile,
    Sampling,
    TrainedParts,
    Views,
)
from longtail.utils.errors import InputError

T = TypeVar("T")

_BOUNDS = {
    "min": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "max": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}


def epoch_of(when: float, epochs: int) -> int:
    """Returns the number of epochs that a setting means: a number below 1 is a fraction of all epochs."""
    return round(when * epochs) if when < 1 else round(when)


def bounded(default: T, **bounds: float) -> T:
    """Returns a field with bounds: ``min`` and ``max`` are inclusive, ``above`` and ``below`` exclusive."""
    assert bounds.keys() <= _BOUNDS.keys()
    return field(default=default, metadata=bounds)


@dataclass(frozen=True)
class _Checked:
    """Checks the values of the fields one by one."""

    def __post_init__(self) -> None:
        for setting in fields(self):
            name, value = setting.name, getattr(self, setting.name)
            optional = NoneType in get_args(setting.type)
            if value is None and not optional:
                raise InputError(f"{self._section}{name} is null; it must have a value")
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, str):
                    self._require("\0" not in item, name, "without null characters")
                elif isinstance(item, int | float):
                    self._require(math.isfinite(item), name, "finite")
                    keeps = all(_BOUNDS[kind][0](item, bound) for kind, bound in setting.metadata.items())
                    words = " and ".join(f"{_BOUNDS[kind][1]} {bound}" for kind, bound in setting.metadata.items())
                    self._require(keeps, name, words + (", or null" if optional else ""))

    @property
    def _section(self) -> str:
        return "" if isinstance(self, Config) else type(self).__name__.removesuffix("Config").lower() + "."

    def _require(self, condition: bool, setting: str, requirement: str) -> None:
        """Raises an error about a setting of the section, or of any section by ``section.field``."""
        if not condition:
            value = operator.attrgetter(setting)(self)
            raise InputError(f"{self._section}{setting} is {value!r}; it must be {requirement}")


@dataclass(frozen=True)
class DataConfig(_Checked):
    """Data set, splits and image size."""

    name: str = "digits"
    """Data set: digits (built in), cifar10, cifar100, imagenet-lt, inaturalist2018, places-lt, folder (one folder per
    class) or list (the list files below)."""

    root: str = "data"
    """Folder of the data set. Paths in list files are relative to it. digits does not use it."""

    train_list: str | None = None
    """List file of the training images: CSV, TSV, or one 'path label' per line; relative to root. It may have a column
    of splits. Only for name 'list'."""

    val_list: str | None = None
    """List file of the validation images. Only for name 'list'."""

    test_list: str | None = None
    """List file of the test images. null: those of the column of splits in train_list, or else test_fraction of each
    class. Only for name 'list'."""

    class_names: str | None = None
    """File with one class name per line, in the order of the labels; relative to root. Only for list files."""

    allow_outside_root: bool = False
    """Allow paths in list files that are absolute or leave root through '..'. Symbolic links inside root may always
    lead outside."""

    empty_classes: Literal["skip", "error"] = "skip"
    """What to do with class folders without images. skip: leave them out, with a note. error: stop."""

    on_corrupt_image: Literal["error", "skip"] = "error"
    """What to do if image files do not decode. error: stop. skip: decode all images once before training, leave out
    those that fail, and list them in skipped_images.txt in the run folder."""

    max_corrupt_images: float = bounded(0.01, min=0, max=1)
    """Largest fraction of images that 'skip' leaves out; more is an error."""

    duplicates: Literal["keep", "drop-test"] = "keep"
    """What to do with test images that are copies of training or validation images: the same bytes of a file, or the
    same pixels of CIFAR. keep: test on them; their number is reported before training. drop-test: leave them out."""

    imbalance: Literal["none", Profile] = "none"
    """Profile of the class counts when a long-tailed subset of the training images is made."""

    imbalance_factor: float = bounded(0.01, above=0, max=1)
    """Number of images of the rarest class divided by that of the most common class."""

    subset_seed: int = bounded(0, min=0, max=2**32 - 1)
    """Seed that chooses the long-tailed subset and the images held out; independent of the training seed."""

    val_fraction: float = bounded(0.0, min=0, below=1)
    """Fraction of each class's training images held out for validation, if the data set has no validation split."""

    val_spare: int = bounded(0, min=0)
    """Maximum number of validation images per class, taken from images that the long-tailed subset leaves out. Not used
    if val_fraction is set."""

    test_fraction: float = bounded(0.2, min=0, below=1)
    """Fraction of each class's images held out for testing, if the data set has no test split."""

    image_size: int | None = bounded(None, min=4, max=4096)
    """Height and width of the network's input in pixels. null: the size of the data (8 for digits, 32 for CIFAR), or,
    for image files, the size the backbone was published with."""

    resize: int | None = bounded(None, min=4, max=4096)
    """Length of the shorter side in pixels before the central crop to image_size. Only for image files. null:
    image_size * 256 / 224."""

    interpolation: Interpolation | None = None
    """Interpolation for resizing. null: the one the backbone was published with."""

    mean: tuple[float, float, float] | None = None
    """Mean of red, green and blue, from 0 to 1, which is subtracted. null: the values the backbone was published with,
    or those of ImageNet."""

    std: tuple[float, float, float] | None = bounded(None, above=0)
    """Standard deviation of red, green and blue, by which images are divided. null: as for mean."""

    cache_gib: float = bounded(2.0, min=0)
    """Memory for decoded images in GiB, per process. Image files are decoded only once if all fit and neither crop
    'resized' nor rand_augment is used. Augmentation then runs on batches: same distribution, other random numbers."""

    workers: int = bounded(2, min=0)
    """Processes that decode image files, at most one per processor. 0: decode in the main process."""

    def __post_init__(self) -> None:
        factor = self.imbalance_factor
        if factor:
            self._require(factor <= 1, "imbalance_factor", "above 0 and at most 1; for imbalance 100 it is 0.01")
        super().__post_init__()
        if self.resize is not None and self.image_size is not None:
            self._require(self.resize >= self.image_size, "resize", f"at least data.image_size, {self.image_size}")
        if self.name == "list":
            self._require(self.train_list is not None, "train_list", "a file if data.name is 'list'")


@dataclass(frozen=True)
class AugmentationConfig(_Checked):
    """Random changes to training images."""

    crop: Crop = "padded"
    """padded: shift by up to padding pixels and fill with black. resized: resize a random crop to image_size."""

    padding: int = bounded(4, min=0)
    """Pixels added to every side before a padded crop."""

    scale: tuple[float, float] = bounded((0.08, 1.0), above=0, max=1)
    """Smallest and largest area of a resized crop, as fractions of the image."""

    fast_crops: bool = True
    """Speed up resized crops: decode JPEG files at 1/2, 1/4 or 1/8 of their size if the crop still has image_size
    pixels, and resize with torch. false: decode in full and use torchvision's transforms of Pillow images. Test images
    are always decoded in full."""

    flip: bool = True
    """Mirror images horizontally with probability 0.5."""

    rotation: float = bounded(15.0, min=0, max=180)
    """Largest rotation in degrees, in both directions; nearest neighbour, corners filled with black."""

    color_jitter: tuple[float, float, float, float] = bounded((0.0, 0.0, 0.0, 0.0), min=0)
    """Strength of brightness, contrast, saturation and hue changes. Only for crop 'resized'."""

    rand_augment: str | None = None
    """RandAugment in timm's notation, such as rand-m9-mstd0.5-inc1 (Swin). Only for image files."""

    auto_augment: Policy = "none"
    """Policy of AutoAugment, named after the data set it was found on (Cubuk et al., 2019), with torchvision's
    magnitudes."""

    cutout: int = bounded(0, min=0)
    """Side in pixels of a square that is filled with black (Cutout, DeVries & Taylor, 2017). Its centre is anywhere in
    the image, so a part of it may lie outside. 0: off."""

    views: Literal["one", "weak-strong"] = "one"
    """Views of each image in a step. weak-strong: two, and the loss is the mean over both. The weak view has no
    rand_augment, auto_augment or cutout, and the strong one no rotation; all else is drawn for each. See
    distillation.self_factor. Not for mixup, cutmix and random_erasing."""

    random_erasing: float = bounded(0.0, min=0, max=1)
    """Probability that a rectangle of an image is replaced by noise."""

    mixup: float = bounded(0.0, min=0)
    """Mix pairs of images and their targets, with weights from Beta(mixup, mixup). 0: off. With training.views the
    outputs of the frozen part are mixed instead of images."""

    cutmix: float = bounded(0.0, min=0)
    """Paste a rectangle of one image into another and mix their targets, with areas from Beta(cutmix, cutmix). 0: off.
    With mixup, one of the two is chosen at random."""

    mix_images: int | None = bounded(None, min=2)
    """Images that are mixed with the same weight or area. null: all images of a step in a process. RIDE-Swin: those of
    one GPU in one accumulated part."""

    mix_probability: float = bounded(1.0, min=0, max=1)
    """Probability that images are mixed at all."""

    cutmix_probability: float = bounded(0.5, min=0, max=1)
    """Probability of cutmix instead of mixup, if both are on."""

    cutmix_range: tuple[float, float] | None = bounded(None, min=0, max=1)
    """Smallest and largest side of cutmix's rectangle, as fractions of the image's, instead of areas from Beta."""

    def __post_init__(self) -> None:
        super().__post_init__()
        jitter, sides = self.color_jitter, self.cutmix_range
        are_sides = sides is None or (self.cutmix > 0 and sides[0] <= sides[1])
        self._require(are_sides, "cutmix_range", "two numbers in ascending order, with cutmix above 0")
        self._require(self.scale[0] <= self.scale[1], "scale", "two numbers in ascending order")
        mixed = [name for name in ("mixup", "cutmix", "random_erasing") if getattr(self, name)]
        self._require(self.views == "one" or not mixed, "views", f"'one' if {' or '.join(mixed)} is above 0")
        self._require(jitter[3] <= 0.5, "color_jitter", "at most 0.5 for hue, the last number")
        self._require(self.crop == "resized" or not any(jitter), "color_jitter", "0 unless crop is 'resized'")


@dataclass(frozen=True)
class ModelConfig(_Checked):
    """Network architecture."""

    backbone: str = "resnet32"
    """Network that is split into trunk and branches: resnet20, 32, 44, 56 or 110 for small images, resnet10, or nearly
    every hierarchical network or plain vision transformer of timm."""

    pretrained: bool | str = False
    """true: start from timm's pretrained weights. A path: start from the weights of a run folder, a model file,
    hf://owner/name, a checkpoint of RIDE, or a file of timm's. Of a run or a checkpoint, trunk, experts and heads are
    taken as far as they fit. Narrowed stages start from random weights otherwise."""

    expert_stages: int | None = bounded(None, min=1)
    """Number of last stages that each expert has for itself. null: 2, or a quarter of the blocks of a plain vision
    transformer."""

    experts_from: str | None = None
    """Name of the first module that each expert has for itself, such as blocks.6 of an EfficientNet or layer4.1 of a
    ResNet, instead of a number of stages."""

    num_experts: int = bounded(3, min=1)
    """Number of experts."""

    width: Literal["narrow", "full"] | list[int] = "narrow"
    """Channels of the last two stages: narrow (three quarters of the backbone's), full, or a list of numbers."""

    depths: list[int] | None = field(default=None, metadata={"min": 1})
    """Number of blocks in each stage, such as [2, 2, 12, 2]. null: those of the backbone. Only for timm's Swin,
    ConvNeXt and other networks whose constructor has this argument."""

    window_size: int | None = bounded(None, min=1)
    """Height and width of the attention windows in patches. null: those of the backbone. Only for timm's Swin and other
    networks whose constructor has this argument."""

    head: HeadKind = "cosine"
    """Classifier of each expert."""

    scale: float = bounded(30.0, above=0)
    """Factor by which a cosine head multiplies the cosines."""

    head_start: Literal["random", "class-means"] = "random"
    """Initial weights of the heads. class-means: the mean features of each class, for pretrained networks (LIFT, Shi et
    al., 2024)."""

    drop_rate: float = bounded(0.0, min=0, below=1)
    """Dropout before the heads. Only for timm backbones."""

    drop_path_rate: float = bounded(0.0, min=0, below=1)
    """Stochastic depth rate of the last block; it rises linearly from the first block. Only for timm backbones."""


@dataclass(frozen=True)
class LossConfig(_Checked):
    """Loss of the experts' training."""

    name: str = "ride"
    """cross_entropy; focal; logit_adjustment (balanced softmax, SADE, BalPoE: see prior_exponents); ldam (margins that
    grow with rarity); ride (ldam plus a reward for diversity)."""

    focal_gamma: float = bounded(2.0, min=0)
    """Focusing parameter gamma of the focal loss."""

    prior_exponents: list[float] = field(default_factory=lambda: [1.0])
    """Factors of the log class prior that logit_adjustment adds to the logits during training: one, or one per expert.
    1: balanced softmax; 0, 1, 2: BalPoE."""

    inverse_exponents: list[float] = field(default_factory=lambda: [0.0])
    """Factors of the log inverse prior, in which the most common class has the share of the rarest class: one, or one
    per expert. 0, 0, -2 with prior_exponents 0, 1, 1: SADE."""

    max_margin: float = bounded(0.5, min=0)
    """LDAM margin of the rarest class, as a cosine."""

    reweight_after: float | None = bounded(0.8, min=0)
    """Deferred re-weighting (DRW): last epoch without class weights; below 1: a fraction of all epochs. null: no class
    weights."""

    reweight_beta: float = bounded(0.9999, min=0, below=1)
    """beta of the class weights (1 - beta) / (1 - beta^n), where n is the class count; they are scaled to mean 1."""

    diversity_factor: float = -0.45
    """Weight of the KL divergence between each expert and the ensemble. Negative values reward diversity."""

    diversity_mean: bool = False
    """Average the divergence over the experts (RIDE-Swin) instead of summing it (RIDE)."""

    diversity_temperature: float = bounded(1.0, above=0)
    """Temperature of the divergence."""

    temperature_spread: float = bounded(0.05, min=0, max=1)
    """How strongly a class's share of the training images changes its temperature in the divergence after
    reweight_after (RIDE: reweight_factor)."""

    collaborative: bool = False
    """Apply the loss to the mean logits of the experts instead of to each expert."""

    label_smoothing: float = bounded(0.0, min=0, below=1)
    """Probability that is moved from the target to all classes evenly."""


@dataclass(frozen=True)
class TrainingConfig(_Checked):
    """What of the network is trained, optimiser, schedule and precision of the experts' training."""

    trained_parts: TrainedParts = "all"
    """all: everything. experts: branches and heads; the trunk is frozen. heads: heads alone; the backbone is frozen.
    lora: low-rank adapters in the linear layers of each expert's transformer blocks, and heads; all else is frozen."""

    views: int = bounded(4, min=0)
    """Number of views of each training image for which the frozen part is computed, once, before training; epochs take
    turns. They are kept in the run folder while it is trained. With augmentation.flip, every second view is the mirror
    image of the one before. 0: the frozen part runs in every step, on a new augmentation. Not used if everything is
    trained."""

    lora_rank: int = bounded(8, min=1)
    """Rank of the adapters. Only if trained_parts is 'lora'."""

    freeze_batch_norms: bool = False
    """Batch norms keep the statistics that they start with, those of pretrained weights; their factors are trained."""

    epochs: int = bounded(200, min=1)
    """Number of epochs. The model after the last one is the result."""

    batch_size: int = bounded(128, min=1)
    """Images per optimiser step, over all processes."""

    sampling: Literal["shuffled", Sampling] = "shuffled"
    """shuffled: every image once per epoch. The others draw as many images with replacement; the probability of a class
    is proportional to its count (instance), to the square root of its count (square-root), or equal (class-balanced).
    progressive moves from instance to class-balanced during training. Decoupling (Kang et al., 2020), section 3."""

    accumulation: int = bounded(1, min=1)
    """Micro-batches per optimiser step in each process; more need less memory. The gradient is that of the full batch,
    except that batch norms average over a micro-batch."""

    precision: Precision = "float32"
    """Precision of matrix products and convolutions in training. Weights, heads, losses and evaluation use float32."""

    tf32: bool = True
    """Use TF32 for float32 products on NVIDIA GPUs: several times faster, with 10 bits of mantissa."""

    compile: bool = False
    """Compile trunk and branches with torch.compile for training: minutes at the start, faster steps on GPUs."""

    cuda_graph: bool = True
    """Launch all kernels of a step at once, as a CUDA graph: small networks train several times as fast. Only on one
    NVIDIA GPU and not with fp16. Steps that read values from the GPU are not captured."""

    sync_batch_norm: bool = False
    """Average batch norm statistics over all processes. Only on GPUs."""

    checkpoint_every: float = bounded(5.0, min=0)
    """Minutes between two checkpoints, from which an interrupted run resumes exactly. 0: after every step. A signal to
    stop saves one too."""

    keep_every: int = bounded(0, min=0)
    """Epochs between two models that are kept in the folder epochs of the run, besides the last one. 0: none."""

    checkpoint_activations: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, about a third more time."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd uses momentum as set below; adamw uses betas 0.9 and 0.999."""

    learning_rate: float = bounded(0.1, above=0)
    """Learning rate after warm-up."""

    learning_rate_batch: int | None = bounded(None, above=0)
    """Batch size that the learning rates are for; they are scaled by batch_size / learning_rate_batch. null: not
    scaled."""

    trunk_learning_rate: float = bounded(1.0, min=0)
    """Factor on the learning rate of the trunk; below 1 for pretrained weights."""

    momentum: float = bounded(0.9, min=0, below=1)
    """Momentum of sgd."""

    nesterov: bool = True
    """Use Nesterov momentum."""

    weight_decay: float = bounded(5e-4, min=0)
    """Weight decay."""

    decay_vectors: bool = True
    """Apply weight decay to biases, norms and position embeddings too: usual for sgd, not for adamw."""

    clip_gradient: float | None = bounded(None, above=0)
    """Maximum norm of the gradient over all parameters. null: no clipping."""

    ema: float | None = bounded(None, min=0, below=1)
    """Decay of an exponential moving average of weights and batch norm statistics over the steps, such as 0.999; the
    average is evaluated and saved. Step n uses at most (1 + n) / (10 + n). null: the weights of the last step."""

    schedule: Literal["step", "cosine"] = "step"
    """step: multiply the learning rate by decay at each milestone. cosine: anneal it to final_learning_rate."""

    milestones: list[float] = field(default_factory=lambda: [0.8, 0.9], metadata={"min": 0})
    """Completed epochs before each decay of the step schedule; below 1: fractions of all epochs."""

    decay: float = bounded(0.01, above=0, max=1)
    """Factor on the learning rate at each milestone."""

    warmup: float = bounded(0.025, min=0)
    """Epochs of linear warm-up; below 1: a fraction of all epochs."""

    warmup_learning_rate: float = bounded(0.0, min=0)
    """Learning rate at the start of warm-up, for the cosine schedule."""

    final_learning_rate: float = bounded(0.0, min=0)
    """Learning rate at the end of the cosine schedule."""

    validate_every: int = bounded(0, min=0)
    """Epochs between two evaluations on the validation split. They select a model only if patience is set. 0: only at
    the end."""

    patience: int = bounded(0, min=0)
    """Early stopping: training ends when the balanced validation accuracy has not risen in so many evaluations in a
    row, see validate_every, and the model of the best one is the result. 0: all epochs; the last one is the result."""

    max_minutes: float | None = bounded(None, above=0)
    """Training ends after an epoch if another one would end later than so many minutes after the start of the training.
    Loading is not counted, and a training that resumes gets the time again. null: all epochs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        recomputes = self.compile and self.checkpoint_activations
        self._require(not recomputes, "compile", "false if training.checkpoint_activations is true")
        at_most = f"at most training.batch_size, {self.batch_size}"
        self._require(self.accumulation <= self.batch_size, "accumulation", at_most)
        is_validated = 0 < self.validate_every <= self.epochs
        self._require(
            is_validated or not self.patience, "patience", "0 unless training.validate_every is 1 to training.epochs"
        )
        self._require(self.momentum > 0 or not self.nesterov, "nesterov", "false if momentum is 0")
        milestones = [epoch_of(milestone, self.epochs) for milestone in self.milestones]
        ascending = "epochs or fractions of all epochs, in ascending order"
        self._require(milestones == sorted(milestones), "milestones", ascending)


@dataclass(frozen=True)
class DistillationConfig(_Checked):
    """Distillation from a teacher, if any, and self-distillation."""

    temperature: float = bounded(1.5, above=0)
    """Temperature of student and teacher."""

    factor: float = bounded(1.0, min=0)
    """Weight of the distillation loss."""

    published: bool = False
    """Compute the loss as in the code of RIDE: distillation on the mean logits of the experts, the total multiplied by
    the number of experts, and batch norms of the teacher that use the statistics of each batch. false: distillation for
    each expert, and the other losses count once."""

    self_factor: float = bounded(0.0, min=0)
    """Weight of consistency self-distillation (MDCS): each expert learns, for the strong view of an image, what it
    predicts for the weak view, if that prediction is right. Needs augmentation.views 'weak-strong', but no teacher."""

    self_rampup: float = bounded(0.0, min=0)
    """Epochs in which self_factor rises linearly to its value; below 1: a fraction of all epochs."""

    teacher_settings: list[str] = field(default_factory=list)
    """Settings in which the teacher differs from its recipe, such as [training.epochs=40]. On the command line also
    --teacher.training.epochs 40."""


@dataclass(frozen=True)
class ClassifierConfig(_Checked):
    """Second stage: new classifiers on the experts' frozen features.

    Decoupling (Kang et al., 2020), section 4. The defaults for the step sizes are those of the original code for
    ImageNet-LT.
    """

    method: Literal["none", "retrain", "scale", "tau", "nearest-mean"] = "none"
    """retrain: new heads, trained with class-balanced sampling (cRT). scale: a trained factor per class (LWS). tau:
    weights divided by their norm to the power of tau. nearest-mean: nearest class mean (NCM). scale and tau need linear
    heads."""

    epochs: int = bounded(50, min=1)
    """Epochs of retrain and scale, of as many draws as there are training images. The original uses 10 and 5 on
    ImageNet-LT, which are 2,260 and 1,130 steps; 50 epochs of CIFAR-100-LT are 1,100."""

    views: int = bounded(10, min=1)
    """Number of augmented passes over the training images that the epochs cycle through. The original has a new one in
    every epoch."""

    batch_size: int = bounded(512, min=1)
    """Draws per step of sgd with momentum 0.9."""

    learning_rate: float = bounded(0.2, above=0)
    """Initial learning rate; cosine schedule to 0."""

    weight_decay: float = bounded(5e-4, min=0)
    """Weight decay."""

    cache_gib: float = bounded(4.0, min=0)
    """Memory in GiB for the features of all views. If they do not fit, they are computed again in every epoch."""

    tau: float | None = bounded(None, min=0)
    """Exponent of tau. null: the best of 0, 0.1, ..., 2 by balanced accuracy on the validation images."""

    distance: Distance = "cosine"
    """Distance of nearest-mean: angle, angle after the mean of all features is subtracted, or Euclidean distance."""


@dataclass(frozen=True)
class RouterConfig(_Checked):
    """Last stage: the router, which decides after each expert whether an image needs another one."""

    train: bool = False
    """Train a router after the experts and their classifiers."""

    top_choices: int = bounded(30, min=1)
    """Number of largest mean logits in the router's input (RIDE: 30 for CIFAR, 50 for 1,000 classes and more)."""

    hidden: int = bounded(16, min=1)
    """Size to which the router projects an expert's features."""

    shared: bool = True
    """Use one output layer for all steps instead of one per step."""

    positive_weight: float = bounded(100.0, above=0)
    """Weight of images that another expert would correct, relative to 1 for all others. It has little effect if the
    threshold is chosen on validation images; otherwise higher values use more experts."""

    epochs: int = bounded(50, min=1)
    """Epochs of as many class-balanced draws as there are training images (RIDE: 5, which is too few)."""

    batch_size: int = bounded(512, min=1)
    """Draws per step of sgd with Nesterov momentum 0.9."""

    learning_rate: float = bounded(0.01, above=0)
    """Initial learning rate; cosine schedule to 0."""

    weight_decay: float = bounded(5e-4, min=0)
    """Weight decay."""

    cache_gib: float = bounded(4.0, min=0)
    """Memory in GiB for the experts' outputs on the training images. If they do not fit, they are computed again in
    every epoch."""

    threshold: float = bounded(0.5, min=0, max=1)
    """An image uses another expert if the router's probability is above this. Only if neither compute_budget nor
    max_accuracy_drop is set."""

    compute_budget: float | str | None = None
    """Choose the most accurate threshold with this mean cost per image on the validation images: 1.2 (times the cost of
    one expert), or 70M or 4.1G (multiply-accumulates)."""

    max_accuracy_drop: float | None = bounded(None, min=0, max=100)
    """Choose the cheapest threshold that loses at most this many percentage points of balanced accuracy on the
    validation images, compared with all experts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        is_one = self.max_accuracy_drop is None or self.compute_budget is None
        self._require(is_one, "max_accuracy_drop", "null if router.compute_budget is set")

    @property
    def has_goal(self) -> bool:
        """Whether the threshold is chosen on validation images."""
        return self.compute_budget is not None or self.max_accuracy_drop is not None


@dataclass(frozen=True)
class EvaluationConfig(_Checked):
    """Evaluation on the validation and test splits."""

    many_above: int = 100
    """Many-shot classes have more training images than this (RIDE: 100; RIDE-Swin: 99)."""

    few_below: int = bounded(20, min=0)
    """Few-shot classes have fewer training images than this (RIDE: 20; RIDE-Swin: 21)."""

    average: Average = "logits"
    """Average logits (RIDE) or probabilities of the experts to predict. It is saved in the model. The experts' training
    does not depend on it, but the epoch that training.patience chooses does; the router is trained for it."""

    temperature: float | None = bounded(None, above=0)
    """Divides the logits before probabilities are computed; the predicted class stays the same. null: the temperature
    with the lowest negative log-likelihood of the validation images is chosen after training (Guo et al., 2017); 1 if
    there are none. It is saved in the model."""

    views: Views = "one"
    """Views of each image over which the outputs are averaged, as average says. flip: the image and its mirror image.
    five-crop: corners and centre of the central square, if images are resized to more than image_size. ten-crop: also
    the mirror images of these. A router decides on the mean of its outputs for all views. Costs count all views."""

    batch_size: int = bounded(256, min=1)
    """Images per evaluation step, counting every view."""

    calibration_bins: int = bounded(15, min=1)
    """Number of bins of equal width for the expected calibration error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        limit = self.many_above + 1
        self._require(self.few_below <= limit, "few_below", f"at most many_above + 1, {limit}")


@dataclass(frozen=True)
class Config(_Checked):
    """All settings of a run. Recipes are YAML files with the differences from these defaults."""

    name: str = "longtail"
    """Name of the run and of its folder."""

    seed: int = bounded(0, min=0, max=2**32 - 1)
    """Seed of the initial weights, the order of images and the augmentation."""

    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1 or mps."""

    teacher: str | None = None
    """Teacher for distillation: a run folder, a model file, hf://owner/name, a checkpoint of the original RIDE, or a
    recipe. The teacher of a recipe is trained first, on the same data, in the folder teacher of the run."""

    track: str | None = None
    """Trackers that metrics and results are sent to, separated by commas: tensorboard, wandb, mlflow. They do not
    change the training, and a tracker that fails does not end it."""

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
        super().__post_init__()
        model, training, experts, how = self.model, self.training, self.model.num_experts, self.augmentation
        limit = f"at most training.epochs, {training.epochs}, or a fraction below 1"
        for setting, latest in (
            ("training.milestones", max(training.milestones, default=0)),
            ("training.warmup", training.warmup),
            ("loss.reweight_after", self.loss.reweight_after or 0),
            ("distillation.self_rampup", self.distillation.self_rampup),
        ):
            self._require(latest <= training.epochs, setting, limit)
        for name in ("prior_exponents", "inverse_exponents") if self.loss.name == "logit_adjustment" else ():
            is_right = len(getattr(self.loss, name)) in (1, experts)
            self._require(is_right, f"loss.{name}", f"1 number, or {experts}, one per expert")
        fits_head = model.head == "linear" or self.classifier.method not in ("scale", "tau")
        self._require(fits_head, "classifier.method", "none, retrain or nearest-mean if model.head is 'cosine'")
        self._require(experts > 1 or not self.router.train, "router.train", "false if there is only one expert")
        can_start = model.head_start == "random" or model.head == "cosine"
        self._require(can_start, "model.head_start", "'random' if model.head is 'linear'")
        has_views = how.views == "weak-strong"
        can_learn = has_views or self.distillation.self_factor == 0
        self._require(can_learn, "distillation.self_factor", "0 unless augmentation.views is 'weak-strong'")
        if training.trained_parts != "all" and training.views > 0:
            self._require(not has_views, "training.views", "0 if augmentation.views is 'weak-strong'")
            # The published arithmetic lets the teacher see the images of a step as one batch.
            changes = how.cutmix or how.random_erasing or (self.teacher and (how.mixup or self.distillation.published))
            unless = "0 for cutmix, random_erasing, and mixup or distillation.published with a teacher"
            self._require(not changes, "training.views", unless)
