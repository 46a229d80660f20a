"""The command line: one function per command. Help and errors come without importing torch."""

import argparse
import io
import logging
import sys
import unicodedata
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from longtail.runtime.process import num_processors
from longtail.utils.errors import InputError

EXIT_INPUT = 2
EXIT_STOPPED = 75
"""EX_TEMPFAIL of sysexits.h: what was stopped is saved, and the same command goes on with it."""
EXIT_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Errors are one line, and options are not guessed from their beginnings."""

    def __init__(self, **options: Any):
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see '{self.prog} --help'")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, 2 for wrong input, 75 when stopped and saved, 130 when interrupted."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.addLevelName(logging.WARNING, "warning")
    logging.getLogger("longtail").setLevel(logging.INFO)
    logging.addLevelName(logging.INFO, "note")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal or file that cannot hold a name must not end a training
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        known, settings = _parser().parse_known_args(arguments)
        if settings and known.run not in (train, experiment, evaluate, classifier, router, flops):
            raise InputError(f"unknown argument '{settings[0]}'; see 'longtail {known.command} --help'")
        known.run(known, settings)
    except InputError as error:
        if str(error):  # where several processes fail, one speaks
            _complain(str(error))
        return EXIT_INPUT
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        sys.stderr.close()
    except OSError as error:  # a full disk, a folder that cannot be read or written
        _complain(f"{error.filename or 'input or output'}: {error.strerror or error}")
        return EXIT_INPUT
    except (MemoryError, RuntimeError) as error:
        if not _is_about_memory(error):
            raise
        _complain(
            "there is not enough memory; less is needed with a smaller training.batch_size, evaluation.batch_size "
            "(predict: --batch_size), data.cache_gib or data.workers, or a larger training.accumulation"
        )
        return EXIT_INPUT
    except KeyboardInterrupt as error:
        from longtail.runtime.process import Stopped

        print(f"longtail: {'stopped' if isinstance(error, Stopped) else 'interrupted'}", file=sys.stderr)
        return EXIT_STOPPED if isinstance(error, Stopped) else EXIT_INTERRUPTED
    return 0


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _shown(super().format(record))


def _complain(message: str) -> None:
    print(f"longtail: {_shown(message)}", file=sys.stderr)


def _shown(message: str) -> str:
    # Names of files may hold what would turn a terminal red, or empty it.
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cs") and c != "\n" else c for c in message)


def _is_about_memory(error: Exception) -> bool:
    """Also PyTorch's, which is a RuntimeError, on a GPU one of its own."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def train(known: argparse.Namespace, settings: list[str]) -> None:
    """`longtail train`."""
    from longtail.config.recipes import DEFAULT_RECIPE, resolve, settings_parser, to_yaml

    if known.help:
        _print_train_help(known.parser, settings_parser(usage=argparse.SUPPRESS, add_help=False))
        return
    if known.resume is not None:
        if settings or known.config or known.output:
            raise InputError("--resume goes on with a run as it is; it takes no --config, --output or settings")
        from rich.console import Console

        from longtail import api

        api.resume(known.resume, Console())
        return
    config = resolve(known.config or DEFAULT_RECIPE, {}, settings)
    if known.print_config:
        print(to_yaml(config), end="")
        return
    from rich.console import Console

    from longtail import api

    api.train(config, known.output, Console())


def experiment(known: argparse.Namespace, settings: list[str]) -> None:
    """`longtail experiment`."""
    import shlex

    from rich.console import Console

    from longtail.experiments.runner import run_experiment

    run_experiment(
        known.file,
        known.output,
        table=known.table,
        rows=known.rows.split(",") if known.rows else None,
        seeds=None if known.seeds is None else _whole_numbers("--seeds", known.seeds),
        jobs=known.jobs,
        arguments=settings,
        command=shlex.join(["longtail", *sys.argv[1:]]),
        console=Console(),
    )


def classifier(known: argparse.Namespace, settings: list[str]) -> None:
    """`longtail classifier`."""
    from rich.console import Console

    from longtail import api
    from longtail.config.recipes import resolve
    from longtail.runs.run import Run

    _only(settings, ("classifier", "data", "evaluation", "device"), "the classifiers of a run")
    run = Run.open(known.folder)
    api.retrain_classifier(run, config=resolve(str(run.config_path), {}, settings), console=Console())


def router(known: argparse.Namespace, settings: list[str]) -> None:
    """`longtail router`."""
    from rich.console import Console

    from longtail import api
    from longtail.config.recipes import resolve
    from longtail.runs.run import Run

    _only(settings, ("router", "data", "evaluation", "device"), "the router's training")
    run = Run.open(known.folder)
    choice = {"compute_budget": known.compute_budget, "max_accuracy_drop": known.max_accuracy_drop}
    if any(value is not None for value in choice.values()):
        settings = [
            *settings,
            *(f"--router.{name}={'null' if value is None else value}" for name, value in choice.items()),
        ]
    api.add_router(run, config=resolve(str(run.config_path), {}, settings), console=Console())


def evaluate(known: argparse.Namespace, settings: list[str]) -> None:
    """`longtail evaluate`."""
    from rich.console import Console

    from longtail import api
    from longtail.config.recipes import resolve
    from longtail.runs.run import Run

    _only(settings, ("data", "evaluation", "device"), "a test")
    run = Run.open(known.folder)
    config = resolve(str(run.config_path), {}, settings)
    choice = {"compute_budget": known.compute_budget, "max_accuracy_drop": known.max_accuracy_drop}
    also = {"prior": known.prior, "label_shift": known.label_shift}
    api.evaluate(run, known.split, config=config, device=config.device, console=Console(), **choice, **also)


def predict(known: argparse.Namespace, settings: list[str]) -> None:
    """`longtail predict`."""
    import csv

    from rich.console import Console
    from rich.progress import track

    from longtail.inference import Predictor, find_images

    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may hold anything
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    classifier = Predictor(known.model, device=known.device, precision=known.precision, all_experts=known.all_experts)
    pictures = find_images(known.pictures)
    found = track(
        classifier.predict(pictures, batch_size=known.batch_size, top=known.top, workers=known.workers),
        "",
        total=len(pictures),
        console=Console(stderr=True),
        transient=True,
        disable=sys.stdout.isatty() or not sys.stderr.isatty(),  # among lines of the table it would be in their way
    )
    for number, prediction in enumerate(found):
        path, class_name, probability, others = prediction
        if number == 0:
            more = (f"{column}_{place}" for place in range(2, len(others) + 2) for column in ("class", "probability"))
            writer.writerow(["picture", "class", "probability", *more])
        choices = ((name, f"{likely:.6g}") for name, likely in ((class_name, probability), *others))
        writer.writerow([path, *(cell for choice in choices for cell in choice)])


def convert(known: argparse.Namespace, settings: list[str]) -> None:
    """`longtail convert`."""
    from longtail.interop.original.convert import convert as convert_file
    from longtail.utils.format import pluralize

    run = convert_file(known.file, known.output)
    model, metadata = run.load_model()
    data = run.config.data
    routed = "" if model.router is None else " with a router"
    print(
        f"{metadata.architecture['name']}, {pluralize(model.num_experts, 'expert', 'experts')}{routed}, "
        f"{len(metadata.class_names):,} classes, {model.num_parameters:,} parameters, epoch {metadata.epoch}: {run.folder}\n"
        f"Taken to be for {data.name} in '{data.root}' (data.name and data.root in {run.folder / 'config.yaml'}). "
        f"Test it with: longtail evaluate {run.folder}"
    )


def flops(known: argparse.Namespace, settings: list[str]) -> None:
    """`longtail flops`."""
    from pathlib import Path

    from rich.console import Console

    from longtail.config.recipes import list_recipes, resolve
    from longtail.models import build as model_build
    from longtail.reports.cost_table import Subject, cost_table
    from longtail.runs.model_file import load_model_file
    from longtail.runs.run import Run

    shares = None if known.experts_used is None else _numbers("--experts_used", known.experts_used)
    path = Path(known.model)
    if known.model not in list_recipes() and (path.is_dir() or path.suffix == ".safetensors"):
        if settings or known.num_classes is not None:
            given = settings[0] if settings else "--num_classes"
            raise InputError(f"'{path}' holds a trained model, which {given} cannot change; settings are for recipes")
        model, metadata = load_model_file(Run.open(path).model_path if path.is_dir() else path)
        subject = Subject(model, metadata.architecture, metadata.image_size)
    else:
        config = resolve(known.model, {}, settings)
        subject = Subject.planned(model_build.planned_architecture(config, known.num_classes))
    Console().print(cost_table(subject, shares))


def _only(settings: Sequence[str], sections: Sequence[str], what: str) -> None:
    """Refuses settings that would change nothing."""
    for option in (word.partition("=")[0].removeprefix("--") for word in settings if word.startswith("--")):
        if "." in option and option.split(".")[0] not in sections:
            raise InputError(f"'{option}' says nothing about {what}; settings of {', '.join(sections)} do")


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"{option} '{text}': numbers with commas between them, such as 41,10,49") from None


def _whole_numbers(option: str, text: str) -> list[int]:
    if not all(number.isascii() and number.isdigit() for number in text.split(",")):
        raise InputError(f"{option} '{text}': whole numbers with commas between them, such as 0,1,2")
    return [int(number) for number in text.split(",")]


def recipes(known: argparse.Namespace, settings: list[str]) -> None:
    """`longtail recipes`."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from longtail.config.recipes import DEFAULT_RECIPE, about, list_recipes

    console = Console(highlight=False)
    for name in list_recipes():
        described = about(name)
        console.print(f"[bold]{name}[/]{' (default)' if name == DEFAULT_RECIPE else ''}")
        words = f"{described.description}\nExpected: {described.expected}.\nTime: {described.time}."
        console.print(Padding(Text(words), (0, 0, 1, 2), expand=False))
    console.print("longtail train --config NAME")


def _print_train_help(parser: argparse.ArgumentParser, settings: Any) -> None:
    parser.print_help()
    print("\nsettings, each with the value it has unless the recipe changes it:")
    print(settings.format_help())


def _add_choice(command: argparse.ArgumentParser) -> None:
    choice = command.add_mutually_exclusive_group()
    text = "choose the router's threshold on the validation images: the best for this mean cost, such as 1.2 (times "
    choice.add_argument("--compute_budget", metavar="COST", help=text + "one expert's) or 70M (multiply-accumulates)")
    text = "choose it as the cheapest that loses at most so many percentage points of balanced accuracy"
    choice.add_argument("--max_accuracy_drop", metavar="POINTS", type=float, help=text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="longtail",
        description="Long-tailed image recognition with routed, diverse experts.",
        epilog="'longtail train' alone trains on built-in data in under a minute.",
    )
    parser.add_argument("--version", action="version", version=f"longtail {version('longtail')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    command = commands.add_parser(
        "train",
        help="train and test a model",
        description="Trains and tests a model, and writes a run folder.",
        usage="longtail train [--config NAME-or-FILE] [--output FOLDER] [--section.field value ...] | --resume RUN",
        add_help=False,
    )
    command.add_argument(
        "--config", metavar="NAME-or-FILE", help="recipe, or a YAML file; default: the built-in digits"
    )
    command.add_argument("--output", metavar="FOLDER", help="run folder to make; default: runs/NAME")
    command.add_argument(
        "--resume", metavar="RUN", help="go on with an interrupted run, exactly where it was saved last"
    )
    command.add_argument("--print_config", action="store_true", help="print every setting as YAML and stop")
    command.add_argument("-h", "--help", action="store_true", help="show this and every setting")
    command.set_defaults(run=train, parser=command)

    command = commands.add_parser(
        "experiment",
        help="train several recipes with several seeds, and make one table",
        description="Trains every row of an experiment with every seed, but for what is finished already, and writes "
        "a table: mean ± standard deviation over seeds, beside published values, as Markdown and JSON. Settings are "
        "for all rows.",
        usage="longtail experiment FILE [--output FOLDER] [--table PATH] [--rows NAMES] [--seeds SEEDS] [--jobs N] "
        "[--section.field value ...]",
    )
    command.add_argument("file", metavar="FILE", help="YAML file: title, seeds, settings of all rows, rows")
    command.add_argument("--output", metavar="FOLDER", help="of the runs; default: runs/FILE")
    command.add_argument("--table", metavar="PATH", help="of the table, without .md; default: table in the folder")
    command.add_argument("--rows", metavar="NAMES", help="train only these (with commas), and their teachers")
    command.add_argument("--seeds", metavar="SEEDS", help="other ones than the file's: 0,1,2")
    command.add_argument(
        "--jobs", metavar="N", type=int, default=1, help="trainings at once; they share cores and GPUs (default: 1)"
    )
    command.set_defaults(run=experiment)

    command = commands.add_parser(
        "classifier",
        help="give the experts of a run other classifiers",
        description="Makes other classifiers from those that the experts of a finished run or a converted checkpoint "
        "were trained with, and tests them; a router is trained anew. --classifier.method says which: retrain (cRT), "
        "scale (LWS), tau, nearest-mean (NCM), or none for the experts' own.",
        usage="longtail classifier RUN --classifier.method METHOD [--classifier.field value ...]",
    )
    command.add_argument("folder", metavar="RUN", help="run folder")
    command.set_defaults(run=classifier)

    command = commands.add_parser(
        "router",
        help="train a router for a run",
        description="Trains a router for a finished run or a converted checkpoint, or replaces the one it has, and "
        "tests it. The experts stay as they are. Settings may say how (--router.max_accuracy_drop 0.2).",
        usage="longtail router RUN [--compute_budget COST | --max_accuracy_drop POINTS] [--router.field value ...]",
    )
    command.add_argument("folder", metavar="RUN", help="run folder")
    _add_choice(command)
    command.set_defaults(run=router)

    command = commands.add_parser(
        "evaluate",
        help="test a run again",
        description="Tests a run and writes its results and report anew. Settings may say where the data are now "
        "(--data.root FOLDER) or how to count (--evaluation.many_above 99).",
        usage="longtail evaluate RUN [--split test|val] [--compute_budget COST | --max_accuracy_drop POINTS] "
        "[--prior FILE|uniform] [--label_shift] [--section.field value ...]",
    )
    command.add_argument("folder", metavar="RUN", help="run folder")
    command.add_argument("--split", choices=("test", "val"), default="test", help="the part to print")
    _add_choice(command)
    command.add_argument(
        "--prior",
        metavar="FILE",
        help="also adjust answers to how common each class is: JSON or text with one number per class, or 'uniform'",
    )
    command.add_argument(
        "--label_shift",
        action="store_true",
        help="also test on parts in which classes are as common as in training, all alike, and the other way round",
    )
    command.set_defaults(run=evaluate)

    command = commands.add_parser(
        "predict",
        help="classify pictures",
        description="Classifies pictures and prints a line of CSV for each: picture, class, probability.",
    )
    command.add_argument("model", metavar="RUN", help="run folder or model file")
    command.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture, or a folder of pictures")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    command.add_argument(
        "--precision",
        choices=("float32", "bf16", "fp16"),
        default="float32",
        help="of products and convolutions (default: float32); others are faster where the hardware is made for them",
    )
    command.add_argument("--top", metavar="K", type=int, default=1, help="classes for each picture (default: 1)")
    command.add_argument("--batch_size", metavar="B", type=int, default=64, help="pictures at once (default: 64)")
    command.add_argument(
        "--workers",
        metavar="N",
        type=int,
        default=min(num_processors(), 8),
        help="processes that decode, where there are several batches (default: one for each processor, at most 8)",
    )
    command.add_argument("--all_experts", action="store_true", help="ask all experts, whatever the router says")
    command.set_defaults(run=predict)

    command = commands.add_parser(
        "convert",
        help="turn a checkpoint of the original RIDE or RIDE-Swin into a run",
        description="Makes a run folder of a checkpoint of the original RIDE or RIDE-Swin. Nothing in it is executed.",
    )
    command.add_argument("file", metavar="FILE", help="checkpoint (.pth); a config.json beside it is read too")
    command.add_argument("output", metavar="OUT", help="run folder to make")
    command.set_defaults(run=convert)

    command = commands.add_parser(
        "flops",
        help="count what a model computes",
        description="Counts multiply-accumulates (MACs) and FLOPs (2 MACs) of each part for one image. Needs no data.",
        usage="longtail flops RECIPE-or-RUN [--experts_used SHARES] [--num_classes C] [--section.field value ...]",
    )
    command.add_argument("model", metavar="RECIPE-or-RUN", help="recipe, YAML file, run folder or model file")
    command.add_argument(
        "--experts_used",
        metavar="SHARES",
        help="also the mean of a routing: the shares of images that use 1, 2, ... experts, such as 41,10,49",
    )
    command.add_argument(
        "--num_classes", type=int, metavar="C", help="classes, where the name of the recipe's data set does not say"
    )
    command.set_defaults(run=flops)

    command = commands.add_parser(
        "recipes", help="list the recipes", description="Lists the recipes with what they reach."
    )
    command.set_defaults(run=recipes)
    return parser
