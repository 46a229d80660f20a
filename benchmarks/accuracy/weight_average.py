"""What averaged weights (`training.ema`) change: several decays, and the weights of the last step, of one training.

    python benchmarks/accuracy/weight_average.py cifar100-lt-mdcs --decays 0.99 0.998 0.999 --training.epochs 15

Averages do not change the training, so all of them belong to the same one. Accuracies are of validation images. Further
arguments are settings.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for `result`
from result import report

from longtail.config.recipes import resolve
from longtail.config.schema import Config
from longtail.evaluation.outputs import collect_outputs, evaluate_outputs
from longtail.losses.build import build_criterion
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.runs.context import open_context
from longtail.runs.run import Run
from longtail.training.ema import WeightAverage
from longtail.training.loop import LoopOptions, fit
from longtail.training.optim import learning_rate, optimizer
from longtail.training.tasks import TrainExperts

HEADER = f"{'epoch':>5}  {'weights':<12}{'overall':>8}{'many':>7}{'medium':>8}{'few':>7}{'ECE':>6}"


def lines(config: Config, decays: list[float], after: list[int]) -> Iterator[str]:
    """Trains, and yields the lines of the table."""
    with tempfile.TemporaryDirectory() as folder:
        context = open_context(Run(Path(folder)), config)
        metadata, dataset, training = context.new_metadata(), context.dataset, config.training
        with context.seeded_init():
            model = create_model(**metadata.architecture, average=config.evaluation.average)
        model = context.to_device(model)
        criterion = build_criterion(config.loss, dataset.class_counts, training.epochs, config.model.scale)
        averages = {decay: WeightAverage(model, decay) for decay in decays}
        loader = context.loaders.train(training, config.loss.label_smoothing)
        assert dataset.val is not None
        val_loader, done = context.eval_loader(dataset.val), 0

        def update(*step: object) -> None:
            nonlocal done
            for average in averages.values():
                average.update(done)
            done += 1

        def row(epoch: int, name: str, network: MultiExpert) -> str:
            result = evaluate_outputs(collect_outputs(network, val_loader), dataset.class_counts, config.evaluation)
            scores = result.accuracy, result.many, result.medium, result.few, result.ece
            overall, many, medium, few, ece = (float("nan") if score is None else 100 * score for score in scores)
            return f"{epoch:>5}  {name:<12}{overall:>8.1f}{many:>7.1f}{medium:>8.1f}{few:>7.1f}{ece:>6.1f}"

        yield f"{len(dataset.train)} training and {len(dataset.val)} validation images, {len(loader)} steps per epoch"
        yield HEADER
        task, rate = TrainExperts(model, criterion), learning_rate(training)
        options = LoopOptions(runtime=context.runtime, seed=config.seed, on_step=update)
        for record in fit(task, loader, optimizer(training, task), rate, training.epochs, options):
            if record["epoch"] in after:
                yield row(record["epoch"], "last step", model)
                for decay, average in averages.items():
                    yield row(record["epoch"], f"ema {decay:g}", average.model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--decays", type=float, nargs="+", default=[0.99, 0.998, 0.999])
    parser.add_argument("--after", type=int, nargs="+", help="epochs after which they are compared; default: the last")
    parser.add_argument("--name", default="weight-average.txt", help="of the file with the result")
    options, settings = parser.parse_known_args()
    config = resolve(options.recipe, arguments=settings)
    report(lines(config, options.decays, options.after or [config.training.epochs]), options.name)


if __name__ == "__main__":
    main()
