"""Settings for a folder of images, chosen from its images, this machine and the time that training may take."""

import logging
import time
import timeit
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch

from longtail.config.recipes import FOLDER_RECIPE, load_recipe
from longtail.config.schema import Config
from longtail.data.build import load_data, preprocessing
from longtail.data.image_io import decode
from longtail.data.splits import DataSplits
from longtail.data.transforms import eval_transform
from longtail.data.views import NUM_VIEWS
from longtail.evaluation.flops import cost
from longtail.models.build import architecture
from longtail.models.fuse import fuse_batch_norms
from longtail.models.initialisation import skip_init
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.runtime.device import pick_device
from longtail.runtime.process import num_processors
from longtail.utils.console import without_notes
from longtail.utils.errors import InputError
from longtail.utils.format import duration, pluralize

logger = logging.getLogger(__name__)

TIME_LIMIT = 1200.0
"""Seconds that training and testing may take if nothing else is asked for"""

SIZES = (128, 160, 192)
"""Heights and widths to choose from, pixels; larger ones were not compared on validation images"""

VAL_FRACTION, MIN_VALIDATION = 0.1, 30
"""Share of the training images that is held out for validation, and the fewest that are worth it"""

STEPS = 400
"""Few images are shown in more epochs and smaller batches, for so many steps"""

MIN_BATCH = 16
"""Fewest images in a step"""

MARGIN = 0.75
"""Share of the time that is planned: the machine may become slower"""

MIN_EPOCHS, MAX_EPOCHS = 4, 10
"""Fewest and most epochs to choose for pretrained networks: more of them cost rare classes"""

SAMPLE, MEASURED_SIZE = 8, 160
"""Images with which the speed is measured, and their height and width, pixels"""


class Plan(NamedTuple):
    """What is chosen."""

    image_size: int
    epochs: int
    seconds: float
    """Expected time of training and testing"""

    testing: float
    """Expected time of testing alone"""


def choose_settings(
    config: Config | None = None, *, fixed: Collection[str] = (), time_limit: float | None = None
) -> Config:
    """Returns settings with what suits the images and this machine: image size, epochs, batch and validation images.

    An image size that is set stays. So do the epochs, at most, of a network that is not pretrained. Speed is measured
    for a second or two, so the choice may differ from one time to another. `longtail.train` writes all settings into
    the run folder.

    Args:
        config: of the data; the recipe ``folder`` by default.
        fixed: names of settings that stay as they are, such as ``data.image_size``.
        time_limit: seconds for training and testing; `TIME_LIMIT` by default. Training ends early if it becomes so slow
            that testing would end later, except if the epochs are fixed and no time is given.

    Raises:
        InputError: the images are missing or wrong.
    """
    config = config or load_recipe(FOLDER_RECIPE)
    is_limited = time_limit is not None or "training.epochs" not in fixed
    time_limit = TIME_LIMIT if time_limit is None else time_limit
    with without_notes():  # training logs them
        dataset = load_data(config.data)
    enough = VAL_FRACTION * len(dataset.train) >= MIN_VALIDATION
    if dataset.val is None and enough and "data.val_fraction" not in fixed:
        config = replace(config, data=replace(config.data, val_fraction=VAL_FRACTION))
        dataset = dataset.with_validation(VAL_FRACTION, config.data.subset_seed)
    clock = _Clock(config, dataset)
    max_epochs = config.training.epochs
    if "training.epochs" not in fixed and config.model.pretrained:
        max_epochs = min(MAX_EPOCHS, max(max_epochs, -(-STEPS * config.training.batch_size // len(dataset.train))))
    batch_size = config.training.batch_size
    if "training.batch_size" not in fixed:
        while batch_size > MIN_BATCH and max_epochs * len(dataset.train) < STEPS * batch_size:
            batch_size //= 2
    min_epochs = max_epochs if "training.epochs" in fixed else min(MIN_EPOCHS, max_epochs)
    plans = [
        clock.plan(size, epochs)
        for size in ([config.data.image_size] if config.data.image_size else SIZES)
        for epochs in range(min_epochs, max_epochs + 1)
    ]
    in_time = [plan for plan in plans if plan.seconds <= MARGIN * time_limit]
    # Larger images gain more than more epochs.
    plan = max(in_time) if in_time else min(plans, key=lambda plan: plan.seconds)
    is_longer = plan.seconds > time_limit
    logger.log(
        logging.WARNING if is_longer else logging.INFO,
        f"Chosen for {len(dataset.train):,} training images on {clock.device}, within {duration(time_limit)}: "
        f"{plan.image_size} pixels, {pluralize(plan.epochs, 'epoch')}, batches of {batch_size}; expected to take "
        f"{duration(plan.seconds)}{', which is longer' if is_longer else ''}",
    )
    training = replace(config.training, epochs=plan.epochs, batch_size=batch_size)
    if is_limited and "training.max_minutes" not in fixed:
        # The share of training in the expected time: a machine that becomes slower tests more slowly, too.
        minutes = time_limit / 60 * (1 - plan.testing / plan.seconds)
        training = replace(training, max_minutes=float(f"{minutes:.3g}"))
    return replace(config, data=replace(config.data, image_size=plan.image_size), training=training)


class _Clock:
    """Estimates how long training and testing take, from a short measurement of this machine."""

    def __init__(self, config: Config, dataset: DataSplits):
        self.config, self.dataset = config, dataset
        self.device = pick_device(config.device)
        self._cost = cache(lambda image_size: cost(self._model(image_size), image_size))
        model = self._model(MEASURED_SIZE)
        self.seconds_per_image = self._decoding()
        network = fuse_batch_norms(model, MEASURED_SIZE).to(self.device)
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = torch.zeros(SAMPLE, 3, MEASURED_SIZE, MEASURED_SIZE, device=self.device)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            times = timeit.repeat(lambda: network(images).logits.sum().item(), number=1, repeat=4)
        self.seconds_per_mac = min(times[1:]) / SAMPLE / cost(model, MEASURED_SIZE).total  # the first one warms up

    def plan(self, image_size: int, epochs: int) -> Plan:
        """The time for images of this size and so many epochs."""
        training, costs = self.config.training, self._cost(image_size)
        num_train = len(self.dataset.train)
        num_test = sum(len(split) for split in (self.dataset.test, self.dataset.val) if split is not None)
        views = training.views if training.trained_parts != "all" else 0
        frozen = {"all": 0, "heads": costs.total}.get(training.trained_parts, costs.trunk)
        # A backward pass takes about twice as long as the forward pass.
        step = 3 * (costs.total - frozen) + (0 if views else frozen)
        work, decoded = num_train * (views * frozen + epochs * step), num_train * (views or epochs)
        training_time = work * self.seconds_per_mac + decoded * self.seconds_per_image
        macs_per_image = NUM_VIEWS[self.config.evaluation.views] * costs.total
        testing = num_test * (macs_per_image * self.seconds_per_mac + self.seconds_per_image)
        return Plan(image_size, epochs, training_time + testing, testing)

    def _model(self, image_size: int) -> MultiExpert:
        with skip_init():
            return create_model(**architecture(self.config.model, self.dataset.num_classes, image_size)).eval()

    def _decoding(self) -> float:
        """Seconds for an image, if all processors decode."""
        paths = self.dataset.train.paths
        if paths is None:
            return 0.0
        data = replace(self.config.data, image_size=MEASURED_SIZE, resize=None)
        transform = eval_transform(*preprocessing(data, self.config.model.backbone, self.dataset)[:3])
        start, decoded = time.perf_counter(), 0
        for path in paths[:: max(1, len(paths) // SAMPLE)]:
            with suppress(InputError):  # training lists all damaged images, or skips them
                transform(decode(path))
                decoded += 1
        return (time.perf_counter() - start) / max(1, decoded) / num_processors()


def parse_duration(text: str) -> float:
    """Returns the seconds of a time such as 90s, 30m or 1.5h.

    Raises:
        InputError: the text is no such time.
    """
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        seconds = float(text[:-1]) * units[text[-1:]]
    except (ValueError, KeyError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InputError(f"time '{text}': must be a number with s, m or h, such as 90s, 30m or 1.5h")
    return seconds
