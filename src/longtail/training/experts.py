"""Stage 1: training of the experts."""

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm
from torch import Tensor

from longtail.config.schema import epoch_of
from longtail.data.loaders import Loader
from longtail.evaluation.outputs import Compute, Features, collect_features, collect_outputs, evaluate_outputs
from longtail.losses import DistilledLoss, SelfDistilledLoss
from longtail.losses.build import build_criterion
from longtail.models.activation_checkpointing import checkpoint_activations
from longtail.models.decoupled_heads import class_means
from longtail.models.lora import merge_adapters, merged
from longtail.models.multi_expert import MultiExpert, compile_model, create_model
from longtail.runs.context import RunContext
from longtail.runs.model_file import ModelMetadata
from longtail.runtime.seed import generator
from longtail.training.checkpoint import checksum, stage_checkpoint
from longtail.training.early_end import EarlyEnd, describe
from longtail.training.ema import WeightAverage
from longtail.training.frozen_part import FrozenPart, batch_norms, freeze, frozen_part
from longtail.training.frozen_validation import FrozenValidation
from longtail.training.frozen_views import FrozenViews
from longtail.training.initial_weights import load_initial, start_from
from longtail.training.loop import LoopOptions, fit
from longtail.training.optim import learning_rate, optimizer
from longtail.training.progress import TrainingProgress
from longtail.training.tasks import TrainExperts, teacher_function
from longtail.utils.errors import InputError

logger = logging.getLogger(__name__)

CPU_BATCH = 8
"""Images that a CPU computes at once without gradients: the outputs of layers stay in its caches (1.5 times as fast)"""


class ExpertStage:
    """Stage 1. The constructor finds errors in the settings; `train` takes the time.

    Raises:
        InputError: the settings do not fit together, or not the machine.
    """

    def __init__(self, context: RunContext):
        self.context, config = context, context.config
        self.early_end = EarlyEnd(config.training, context.runtime.group)
        self.metadata = context.new_metadata()
        pretrained = config.model.pretrained
        initial = load_initial(pretrained) if isinstance(pretrained, str) else None
        with context.seeded_init():
            model = create_model(
                **self.metadata.architecture,
                pretrained=pretrained if initial is None else False,
                average=config.evaluation.average,
            )
            if initial is not None:
                start_from(model, initial, str(pretrained), self.metadata.class_names)
            freeze(model, config.training.trained_parts, config.training.lora_rank)
        self.model = context.to_device(model)
        if config.training.checkpoint_activations:
            checkpoint_activations(model)
        counts, epochs = context.dataset.class_counts, config.training.epochs
        self.criterion = build_criterion(config.loss, counts, epochs, config.model.scale)
        self.loader = context.loaders.train(config.training, config.loss.label_smoothing)
        self._check_single_images()
        self.checkpoint = stage_checkpoint(context, "experts")

    def train(self, val_loader: Loader | None, teacher: MultiExpert | None) -> ModelMetadata:
        """Trains trunk, branches and heads; after each epoch the run holds their weights. Returns the metadata."""
        context, config = self.context, self.context.config
        run, training, runtime = context.run, config.training, context.runtime
        metadata, records = self.metadata, self.checkpoint.records
        if self.checkpoint.exists:
            epoch = len(records) + 1
            logger.info("Resuming epoch %d of %d from %s", epoch, training.epochs, self.checkpoint.path)
        if not run.model_path.exists():
            run.write_history(records)  # the history of a model that was removed would count for the new one
        if teacher is not None:
            self.checkpoint.check_teacher(checksum(teacher))
        network = self._prepared_model()
        self._restore_weights(network)
        frozen = frozen_part(self.model, training.trained_parts, metadata.image_size, network)
        views = frozen and self._views(frozen, teacher)
        loader = self.loader
        if views is not None:
            loader = context.loaders.with_soft_targets(views, config.loss.label_smoothing)
            with context.signals.postponed():
                views.prepare()
        if config.model.head_start == "class-means" and not self.checkpoint.exists:
            self._start_from_class_means(frozen, views)
        task = self._task(network, teacher, frozen, views is not None).to(runtime.device)
        progress = TrainingProgress(training.epochs, loader, done=len(records), seconds=self.checkpoint.seconds)
        average = None if training.ema is None else WeightAverage(self.model, training.ema)
        model = self.model if average is None else average.model  # to evaluate and save
        options = LoopOptions(
            accumulation=training.accumulation,
            clip_gradient=training.clip_gradient,
            seed=config.seed,
            runtime=runtime,
            checkpoint=self.checkpoint,
            average=average,
            graph_phase=task.criterion.phase if training.cuda_graph and runtime.can_capture else None,
            on_step=progress.step,
        )
        validate = self._validation(model, val_loader) if training.validate_every else None
        epochs = fit(task, loader, optimizer(training, task), learning_rate(training), training.epochs, options)
        try:
            with progress, context.signals.postponed():
                for record in epochs:
                    if validate is not None and record["epoch"] % training.validate_every == 0:
                        record |= validate()
                    records.append(record)
                    reason = self.early_end.reason(records)
                    if reason is not None:
                        record["ended"] = reason
                    complete = merged(model)
                    if self.early_end.is_result(records):
                        metadata = replace(metadata, epoch=record["epoch"])
                        run.save_model(complete, metadata)
                    if training.keep_every and record["epoch"] % training.keep_every == 0:
                        run.keep_model(complete, replace(metadata, epoch=record["epoch"]))
                    run.write_history(records)
                    context.trackers.epochs("train", *records)
                    progress.epoch(record)
                    if reason is not None:
                        logger.info(describe(reason, records, training))
                        break
        except KeyboardInterrupt:
            if not run.model_path.exists():
                run.save_model(merged(model), metadata)
            raise
        self.model = model
        runtime.group.broadcast(self.model.buffers())
        merge_adapters(self.model)
        if training.patience:
            runtime.group.barrier()  # until it is written
            best, metadata = run.load_model()
            self.model = context.to_device(best)
        self.model.requires_grad_(True)
        self.checkpoint.remove()
        if views is not None:
            views.remove()
        return metadata

    @torch.no_grad()
    def _restore_weights(self, model: MultiExpert) -> None:
        """Restores the weights of the checkpoint before a copy of the frozen part is made.

        The file of the pretrained weights may have changed since then.
        """
        saved = self.checkpoint.weights()
        for name, value in model.state_dict(prefix="model.").items():
            if name in saved and saved[name].shape == value.shape:  # otherwise `Checkpoint.restore` reports it
                value.copy_(saved[name])

    def _validation(self, model: MultiExpert, loader: Loader | None) -> Callable[[], dict[str, float]]:
        """Returns a function that evaluates the model, whose frozen part runs once, on the validation images."""
        assert loader is not None
        config, group, metadata = self.context.config, self.context.runtime.group, self.metadata
        images: Loader = loader
        compute: Compute = model
        if frozen := frozen_part(model, config.training.trained_parts, metadata.image_size):
            images, compute = FrozenValidation(loader, frozen.start, config.data.cache_gib * 2**30), frozen.rest

        def validate() -> dict[str, float]:
            group.broadcast(model.buffers())
            outputs = collect_outputs(model, images, group, compute=compute)
            result = evaluate_outputs(outputs, metadata.class_counts, config.evaluation)
            return {"val_accuracy": result.accuracy, "val_balanced": result.balanced}

        return validate

    def _check_single_images(self) -> None:
        """Finds steps with one image, or its views, if a batch norm in training then sees one value of each channel.

        Raises:
            InputError: the network has maps of 1 x 1, and a process can get a single image.
        """
        loader, training = self.loader, self.context.config.training
        batches = loader.shard.batches(loader.num_images, loader.batch_size)
        if min(batch.rows.stop - batch.rows.start for batch in batches) > 1:
            return
        if training.freeze_batch_norms or training.trained_parts in ("heads", "lora"):
            return
        views = 1 if self.context.config.augmentation.views == "one" else 2
        model, size = copy.deepcopy(self.model).to("meta").train(), self.metadata.image_size
        model.trunk.train(training.trained_parts == "all")
        try:
            model(torch.empty(views, 3, size, size, device="meta"))
        except ValueError as error:
            raise InputError(
                f"training.batch_size is {training.batch_size}: a single image in a process is too few for the batch "
                f"norms of {self.context.config.model.backbone} at {size} pixels; use at least 2 per process"
            ) from error

    def _views(self, frozen: FrozenPart, teacher: MultiExpert | None) -> FrozenViews | None:
        if self.context.config.training.views == 0:
            return None
        functions = [frozen.start] if teacher is None else [frozen.start, teacher_function(teacher)]

        @torch.no_grad()
        def compute(images: Tensor) -> tuple[Tensor, ...]:
            size = CPU_BATCH if images.device.type == "cpu" else len(images)
            with self.context.runtime.autocast():
                parts = [[function(part) for function in functions] for part in torch.split(images, size)]
            return tuple(map(torch.cat, zip(*parts, strict=True)))

        networks = frozen.modules if teacher is None else (*frozen.modules, teacher)
        return FrozenViews(self.context, self.metadata.image_size, compute, checksum(*networks))

    @torch.no_grad()
    def _start_from_class_means(self, frozen: FrozenPart | None, views: FrozenViews | None) -> None:
        """Sets the weights of each head to the mean features of the classes.

        The means of the first expert are over all images alike. Those of the others weigh each image at random: experts
        with the same pretrained weights would stay equal otherwise.
        """
        context, model = self.context, self.model.eval()
        if frozen is None or views is None:
            found = collect_features(model, context.eval_loader(context.dataset.train), context.runtime.group)
        else:
            outputs = [(frozen.rest(inputs).features.cpu(), labels.cpu()) for inputs, labels in views.first_view()]
            found = Features(*(torch.cat(part) for part in zip(*outputs, strict=True)))
        random = generator(context.config.seed, 0)
        for number, head in enumerate(model.heads):
            weights = torch.ones(len(found.labels), 1)
            if number > 0:
                weights.exponential_(generator=random)
            directions = weights * F.normalize(found.features[:, number])
            head.weight.copy_(F.normalize(class_means(directions, found.labels, model.num_classes)))  # type: ignore

    def _task(
        self, model: MultiExpert, teacher: MultiExpert | None, frozen: FrozenPart | None, is_computed: bool
    ) -> TrainExperts:
        """The task, whose inputs are images or, if ``is_computed``, outputs of the frozen part."""
        how, options = self.context.config.distillation, dict[str, Any](fixed=[])
        if frozen is not None:
            options = {"compute": frozen.rest if is_computed else frozen.run, "fixed": [*frozen.modules]}
        training = self.context.config.training
        if training.freeze_batch_norms or training.trained_parts == "lora":  # whose branches are frozen
            options["fixed"] += batch_norms(model)
        criterion: Any = self.criterion
        if teacher is not None:
            criterion = DistilledLoss(
                criterion, temperature=how.temperature, factor=how.factor, published=how.published
            )
            # RIDE's code leaves its teacher in training mode.
            options["teach"] = teacher_function(teacher, batch_statistics=how.published)
        if self.context.config.augmentation.views != "one":
            rampup = epoch_of(how.self_rampup, self.context.config.training.epochs)
            criterion = SelfDistilledLoss(criterion, factor=how.self_factor, rampup=rampup)
        return TrainExperts(model, criterion, **options)

    def _prepared_model(self) -> MultiExpert:
        """The same weights, compiled and with synchronised batch norms if the settings ask for it."""
        training, runtime = self.context.config.training, self.context.runtime
        if training.sync_batch_norm and runtime.group.size > 1:
            if runtime.device.type != "cuda":
                raise InputError("training.sync_batch_norm is true, which needs GPUs; on the CPU it must be false")
            convert_sync_batchnorm(self.model)  # in place, as the model itself is not a batch norm
        return compile_model(self.model) if training.compile else self.model
