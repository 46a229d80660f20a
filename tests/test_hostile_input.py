"""Bad input through the command line: a clear line, exit code 2, and nothing is left behind or changed."""

import json
import os
import re
import resource
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers.hostile import HOSTILE
from helpers.layouts import write_folder
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from longtail.cli import main

QUICK = [
    "--training.epochs",
    "1",
    "--model.backbone",
    "resnet20",
    "--model.num_experts",
    "2",
    "--router.train",
    "false",
]
PHOTOS = ["train", "--config", "folder", "--data.root", "photos", "--data.image_size", "16", "--output", "out", *QUICK]
LISTS = [*PHOTOS, "--data.name", "list", "--data.train_list", "train.txt", "--data.test_list", "test.txt"]
MINE = ["train", "--config", "mine.yaml", "--output", "out"]
MODEL = ["predict", "model.safetensors", "picture.png"]
CONVERT = ["convert", "official.pth", "out"]
EVALUATE = ["evaluate", "run"]

Preparation = Callable[[Path], Any]


class Case(NamedTuple):
    """What is typed, a pattern of what is told, and what is wrong with the folder in which it is typed."""

    arguments: list[str]
    says: str
    prepare: Preparation = lambda here: None


def writes(name: str, content: str | bytes) -> Preparation:
    content = content.encode() if isinstance(content, str) else content
    return lambda here: (here / name).write_bytes(content)


def yaml_case(text: str | bytes, says: str) -> Case:
    return Case(MINE, says, writes("mine.yaml", text))


def list_case(line: str | bytes, says: str) -> Case:
    start = b"class 0/0.jpg 0\nclass 1/0.jpg 1\n"
    return Case(
        LISTS, says, writes("photos/train.txt", start + (line.encode() if isinstance(line, str) else line) + b"\n")
    )


def photo_case(name: str, content: bytes, says: str) -> Case:
    return Case(PHOTOS, says, writes(f"photos/{name}", content))


def described(change: Callable[[dict[str, Any]], Any]) -> Preparation:
    """Writes a model file whose description is changed, or replaced by what is returned."""

    def prepare(here: Path) -> None:
        with safe_open(here / "run/model.safetensors", "pt") as file:
            metadata = json.loads(file.metadata()["longtail"])
        metadata.pop("sha256")  # who wants to deceive can leave it out
        changed = change(metadata)
        text = changed if isinstance(changed, str) else json.dumps(metadata)
        save_file(load_file(here / "run/model.safetensors"), here / "model.safetensors", {"longtail": text})

    return prepare


def card_case(says: str, **fields: Any) -> Case:
    return Case(MODEL, rf"model\.safetensors: .*{says}", described(lambda metadata: metadata.update(fields)))


def architecture_case(says: str, **fields: Any) -> Case:
    change = described(lambda metadata: metadata["architecture"].update(fields))
    return Case(MODEL, rf"model\.safetensors: .*{says}", change)


def split_backbone(name: str, length: int) -> Preparation:
    def prepare(here: Path) -> None:
        content = (here / "run/model.safetensors").read_bytes()
        (here / name).write_bytes(content[:length])

    return prepare


def official_case(content: Any, says: str) -> Case:
    return Case(CONVERT, says, lambda here: torch.save(content, here / "official.pth"))


def png(width: int, height: int) -> bytes:
    """A file of some bytes that says it is a picture of any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def compress(here: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(10)}}, here / "stored.pth")
    with (
        zipfile.ZipFile(here / "stored.pth") as old,
        zipfile.ZipFile(here / "official.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))


def replace_by_folder(name: str) -> Preparation:
    return lambda here: ((here / name).unlink(), (here / name).mkdir())


def make_class(name: str) -> Preparation:
    def prepare(here: Path) -> None:
        (here / "photos" / name).mkdir()
        shutil.copy(here / "picture.png", here / "photos" / name)

    return prepare


NOT_UTF8 = os.fsdecode(b"\xff")

ARGUMENTS = {
    "nothing": Case([], "COMMAND"),
    "unknown command": Case(["trian"], "trian"),
    "nearly a recipe": Case(
        ["train", "--config", "digits-lt"], "no recipe or file 'digits-lt'; did you mean 'digits-lt-"
    ),
    "nearly a setting": Case(["train", "--trainig.epochs", "3"], "did you mean 'training.epochs'"),
    "value out of range": Case(["train", "--training.epochs", "-3"], "training.epochs is -3; it must be at least 1"),
    "value of another type": Case(["train", "--training.epochs", "many"], "training.epochs is 'many'.* int"),
    "value of no choice": Case(
        ["train", "--data.on_corrupt_image", "ignore"], "data.on_corrupt_image is 'ignore'.*error, skip"
    ),
    "share of bad images": Case(
        ["train", "--data.max_corrupt_images", "5"], "data.max_corrupt_images is 5.0.*from 0 to 1"
    ),
    "device that is absent": Case(["train", "--device", "cuda:77"], "device is 'cuda:77', which is not here"),
    "device that is none": Case(["train", "--device", "gpu"], "device is 'gpu', which is not here"),
    "device without memory": Case(["train", "--device", "meta"], "device is 'meta'"),
    "resize of decoded images": Case(["train", "--data.resize", "12"], "data.resize is for image files"),
    "width of nothing": Case(["train", "--model.width", "[0, 0]"], "each must be at least 1"),
    "beginning of an option": Case(["train", "--out", "x"], "unknown setting 'out'"),
    "absent data": Case(
        ["train", "--data.name", "folder", "--data.root", "no/such/place"], "'no/such/place' is not a folder"
    ),
    "unknown backbone": Case(["train", "--model.backbone", "resnet19"], "unknown backbone 'resnet19'; did you mean"),
    "backbone of the hub": Case(["train", "--model.backbone", "hf-hub:a/b"], "unknown backbone 'hf-hub:a/b'"),
    "width that heads do not share": Case(["train", "--model.width", "[33, 96]"], r"33"),
    "crop that needs files": Case(
        ["train", "--augmentation.crop", "resized"], "augmentation.crop 'resized' needs image files"
    ),
    "divergence": Case(
        ["train", "--output", "out", "--training.learning_rate", "1e30", "--training.warmup", "0", *QUICK],
        "learning rate 1e\\+30",
    ),
    "teacher that is absent": Case(
        ["train", "--teacher", "no/such/run"], "teacher is 'no/such/run', which is not there"
    ),
    "weights that are absent": Case(
        ["train", "--model.backbone", "resnet18", "--model.pretrained", "no.pth"],
        "pretrained weights 'no.pth': no such file",
    ),
    "evaluate nothing": Case(["evaluate"], "RUN"),
    "evaluate an absent run": Case(["evaluate", "no/such/run"], "'no/such/run' is not a run folder"),
    "evaluate on training images": Case(["evaluate", ".", "--split", "train"], "train"),
    "evaluate an absent part": Case(
        [*EVALUATE, "--split", "val", "--data.val_spare", "0"], "has no part 'val'; there is test"
    ),
    "evaluate with another model": Case([*EVALUATE, "--model.num_experts", "3"], "says nothing about a test"),
    "threshold without router": Case([*EVALUATE, "--compute_budget", "1.2"], "has no router"),
    "budget of nothing": Case(["router", "run", "--compute_budget", "x"], "compute budget 'x'"),
    "resume what is finished": Case(["train", "--resume", "run"], "'run' is finished"),
    "resume with settings": Case(["train", "--resume", "run", "--seed", "1"], "--resume goes on with a run as it is"),
    "resume nothing": Case(["train", "--resume", ""], "not a run folder"),
    "predict with no run": Case(["predict", "no/such/run", "x.png"], "no/such/run"),
    "predict no picture": Case(["predict", "run", "no.png"], "'no.png' is neither a picture nor a folder"),
    "predict no pictures": Case(
        ["predict", "run", "empty"], "no pictures in 'empty'", lambda here: (here / "empty").mkdir()
    ),
    "predict a pipe": Case(
        ["predict", "run", "pipe.png"], "'pipe.png' is neither", lambda here: os.mkfifo(here / "pipe.png")
    ),
    "recipes with an option": Case(["recipes", "--all"], "--all"),
    "flops of nothing": Case(["flops"], "RECIPE-or-RUN"),
    "flops of no recipe": Case(["flops", "no-such-recipe"], "no-such-recipe"),
    "flops of no run": Case(["flops", "photos"], "'photos' is not a run folder"),
    "flops of a picture": Case(["flops", "picture.png"], "picture.png: .*utf-8"),
    "flops of unknown classes": Case(["flops", "folder"], "--num_classes"),
    "flops of too few shares": Case(["flops", "cifar100-lt-ride", "--experts_used", "60,40"], "must be 3"),
    "flops of words": Case(["flops", "cifar100-lt-ride", "--experts_used", "many"], "'many': numbers with commas"),
    "flops of no shares": Case(
        ["flops", "cifar100-lt-ride", "--experts_used", "nan,1,1"], r"\[nan, 1.0, 1.0\]; 0 or more"
    ),
    "flops of a width": Case(["flops", "cifar100-lt-ride", "--model.width", "[33, 96]"], "33"),
    "flops of a misspelt setting": Case(
        ["flops", "cifar100-lt-ride", "--model.backbon", "x"], "did you mean 'model.backbone'"
    ),
}

CONFIGS = {
    "text": yaml_case("a picture of a rare bird", "mine.yaml: must hold settings.*not a str"),
    "bytes": yaml_case(b"\xff\xfe\x00", "mine.yaml: .*utf-8"),
    "null character": yaml_case("seed: 1\0", "mine.yaml: not valid YAML: unacceptable character #x0000"),
    "null character in a value": yaml_case('data: {root: "a\\0b"}', "data.root is .*without null characters"),
    "month 13": yaml_case(
        "seed: 1\nname: 2001-13-01", "mine.yaml:2: not valid YAML: '2001-13-01' cannot be read as timestamp"
    ),
    "number of 5000 digits": yaml_case("seed: " + "9" * 5000, "mine.yaml:1: .*cannot be read as int"),
    "tagged number": yaml_case("seed: !!float x", "mine.yaml:1: .*'x' cannot be read as float"),
    "list for a name": yaml_case("? [a, b]\n: 1", "mine.yaml:1: .*a name must be a single word"),
    "call": yaml_case("seed: !!python/object/apply:os.mkdir [executed]", "mine.yaml:1: not valid YAML: .*os.mkdir"),
    "alias": yaml_case("a: &a [x]\nb: [*a, *a]", "mine.yaml:2: .*aliases"),
    "twice": yaml_case("seed: 1\nseed: 2", "mine.yaml:2: .*'seed' stands twice"),
    "deep": yaml_case("[" * 5000, "mine.yaml: not valid YAML: too deep"),
    "its own base": yaml_case("base: mine.yaml", "its base 'mine.yaml' is based on it"),
    "infinite": yaml_case("model: {scale: 1e999}", "model.scale is inf; it must be"),
    "not closed": yaml_case("training:\n  epochs: [", "mine.yaml:2: not valid YAML"),
    "folder": Case(MINE, "no recipe or file 'mine.yaml'", lambda here: (here / "mine.yaml").mkdir()),
}

LIST_FILES = {
    "path that leads out": list_case(
        "../secret.jpg 1", "train.txt:3: '../secret.jpg' leads out of data.root.*allow_outside_root"
    ),
    "absolute path": list_case("/etc/passwd 1", "train.txt:3: '/etc/passwd' leads out of data.root"),
    "absent picture": list_case("class 1/none.jpg 1", "train.txt:3: there is no file 'class 1/none.jpg'"),
    "folder for a picture": list_case("class 1 1", "train.txt:3: there is no file 'class 1'"),
    "negative label": list_case("class 1/1.jpg -1", "train.txt:3: '-1' is not a label"),
    "label that leaves gaps": list_case("class 1/1.jpg 900000000", "no training image has label 2 to 899999999"),
    "null character": list_case(b"a\0b/c.jpg 1", r"train.txt:3: there is no file 'a\\x00b/c.jpg'"),
    "very long name": list_case("x" * 5000 + " 1", "train.txt:3: there is no file 'x{200}\\.\\.\\.'"),
    "control characters": list_case("a\x1b[2J.jpg 1", r"train.txt:3: there is no file 'a\\x1b\[2J.jpg'"),
    "another encoding": list_case(b"caf\xe9.jpg 1", "train.txt:3: not UTF-8 text"),
    "hundred bad lines": list_case("none.jpg 1\n" * 100, r"and 81 more\n$"),
    "empty list": Case(LISTS, "train.txt: the list is empty", writes("photos/train.txt", "\n")),
    "pipe for a list": Case(
        LISTS,
        "train.txt: is a pipe",
        lambda here: ((here / "photos/train.txt").unlink(), os.mkfifo(here / "photos/train.txt")),
    ),
    "absent list": Case(LISTS, "test.txt: No such file", lambda here: (here / "photos/test.txt").unlink()),
    "class that training lacks": Case(
        LISTS,
        "test.txt:2: no training image has label 7",
        writes("photos/test.txt", "class 0/1.jpg 0\nclass 1/1.jpg 7\n"),
    ),
    "two classes of one name": Case(
        [*LISTS, "--data.class_names", "names.txt"],
        "names.txt:2: 'cat' is on line 1 too",
        writes("photos/names.txt", "cat\ncat\n"),
    ),
    "class name with control characters": Case(
        [*LISTS, "--data.class_names", "names.txt"],
        r"names.txt:2: 'a\\x1b' holds control characters",
        writes("photos/names.txt", "cat\na\x1b\n"),
    ),
    "absent published lists": Case([*PHOTOS, "--data.name", "places-lt"], "places-lt needs Places_LT_train.txt"),
}


def link_to_each_other(here: Path) -> None:
    """2^40 folders, for whoever only follows links."""
    for one, other in ("ab", "ba"):
        (here / "photos/class 0" / one).mkdir()
        for name in ("x", "y"):
            (here / "photos/class 0" / one / name).symlink_to(f"../{other}")


FOLDERS = {
    "empty class": Case(PHOTOS, "photos/empty' holds no picture", lambda here: (here / "photos/empty").mkdir()),
    "class without pictures": Case(
        PHOTOS,
        "photos/notes' holds no picture",
        lambda here: ((here / "photos/notes").mkdir(), (here / "photos/notes/a.txt").touch()),
    ),
    "one class": Case(
        PHOTOS,
        "single class folder, 'class 0'",
        lambda here: [shutil.rmtree(here / f"photos/class {n}") for n in (1, 2)],
    ),
    "no class": Case(
        PHOTOS, "has no folders of classes", lambda here: (shutil.rmtree(here / "photos"), (here / "photos").mkdir())
    ),
    "file for a folder": Case(
        PHOTOS,
        "data.root 'photos' is not a folder",
        lambda here: (shutil.rmtree(here / "photos"), (here / "photos").touch()),
    ),
    "class in test alone": Case(
        PHOTOS,
        "photos/test/b' is no class of training",
        lambda here: [
            shutil.copytree(here / "photos/class 0", here / f"photos/{name}")
            for name in ("train/a", "train/c", "test/a", "test/b")
        ],
    ),
    "test without training": Case(
        PHOTOS,
        "has test/ but no train/ folder",
        lambda here: (
            (here / "photos").rename("test"),
            (here / "photos").mkdir(),
            (here / "test").rename("photos/test"),
        ),
    ),
    "class name that is not UTF-8": Case(PHOTOS, r"photos/\\udcff': a class cannot be called", make_class(NOT_UTF8)),
    "class name with a line end": Case(PHOTOS, r"photos/a\\nb': a class cannot be called", make_class("a\nb")),
    "link to a folder above": Case(
        PHOTOS,
        "photos/class 0/again' is a link to a folder that it lies in",
        lambda here: (here / "photos/class 0/again").symlink_to(".."),
    ),
    "links to each other": Case(
        PHOTOS,
        "is a link to a folder that it lies in",
        link_to_each_other,
    ),
    "no test image": Case([*PHOTOS, "--data.test_fraction", "0"], "data.test_fraction is 0"),
}

PICTURES = {
    "zero bytes": photo_case("class 0/0.jpg", b"", "class 0/0.jpg: does not decode .the file is empty"),
    "truncated": photo_case("class 0/0.png", png(8, 8)[:40], "class 0/0.png: does not decode"),
    "text": photo_case("class 0/0.jpg", b"a bird", "class 0/0.jpg: does not decode .not a picture of a known kind"),
    "program": photo_case(
        "class 0/0.jpg",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "not a picture of a known kind",
    ),
    "decompression bomb": photo_case(
        "class 0/0.png", png(60_000, 60_000), "class 0/0.png: does not decode .*decompression bomb"
    ),
    "line": photo_case("class 0/0.png", png(60_000, 1), "60000 x 1 pixels: one side is more than 256 times the other"),
    "thirty of them": Case(
        PHOTOS,
        r"and \d+ more\n$",
        lambda here: [(here / f"photos/class 0/bad{number}.jpg").touch() for number in range(30)],
    ),
    "name that is not UTF-8": photo_case(f"class 0/{NOT_UTF8}.jpg", b"x", r"class 0/\\udcff.jpg: does not decode"),
    "name with a line end": photo_case("class 0/a\nb.jpg", b"x", r"class 0/a\\nb.jpg: does not decode"),
    "name that empties a terminal": photo_case("class 0/\x1b[2J.jpg", b"x", r"class 0/\\x1b\[2J.jpg: does not decode"),
    "pipe": Case(
        PHOTOS,
        "pipe.jpg: does not decode .not a file but a pipe",
        lambda here: os.mkfifo(here / "photos/class 0/pipe.jpg"),
    ),
    "link to nothing": Case(
        PHOTOS,
        "l.jpg: does not decode .No such file",
        lambda here: (here / "photos/class 0/l.jpg").symlink_to("nothing"),
    ),
    "link to itself": Case(
        PHOTOS,
        "l.jpg: does not decode .Too many levels",
        lambda here: (here / "photos/class 0/l.jpg").symlink_to("l.jpg"),
    ),
    "predicted": Case(
        ["predict", "run", "broken.png"], "broken.png: does not decode", writes("broken.png", b"\x89PNG nothing")
    ),
}

MODELS = {
    "zero bytes": Case(MODEL, "model.safetensors: cannot be read as safetensors", writes("model.safetensors", b"")),
    "truncated": Case(
        MODEL, "model.safetensors: cannot be read as safetensors", split_backbone("model.safetensors", 100_000)
    ),
    "endless header": Case(
        MODEL, "model.safetensors: cannot be read", writes("model.safetensors", b"\xff" * 8 + b"{}")
    ),
    "pickle": Case(
        MODEL,
        "model.safetensors: cannot be read",
        lambda here: torch.save(HOSTILE["posix.system"](f"touch {here / 'executed'}"), here / "model.safetensors"),
    ),
    "absent": Case(MODEL, "model.safetensors: cannot be read"),
    "weights alone": Case(
        MODEL,
        "holds weights but no description",
        lambda here: save_file({"a": torch.zeros(1)}, here / "model.safetensors"),
    ),
    "description that is deep": Case(
        MODEL, "its description is damaged .maximum recursion", described(lambda metadata: "[" * 100_000)
    ),
    "description that is a list": Case(MODEL, "its description is damaged", described(lambda metadata: "[]")),
    "too few names": card_case("there are 10 classes, 1 names", class_names=["a"]),
    "names that are equal": card_case("there are 10 classes, 1 names", class_names=["a"] * 10),
    "names that are numbers": card_case("class_names is", class_names=list(range(10))),
    "names with control characters": card_case("control characters", class_names=[f"\x1b[3{n}m" for n in range(10)]),
    "counts that are words": card_case("class_counts is", class_counts=["x"] * 10),
    "huge images": card_case("image_size is 1000000", image_size=10**6),
    "image size that is a word": card_case("image_size is x", image_size="x"),
    "division by zero": card_case("std", std=[0, 0, 0]),
    "unknown interpolation": card_case("interpolation is x", interpolation="x"),
    "twenty thousand experts": architecture_case("20000 experts", num_experts=20_000),
    "more classes than memory": architecture_case("1000000000000 classes", num_classes=10**12),
    "wider than memory": architecture_case("width is", width=[10**9, 10**9]),
    "network that is a number": architecture_case("architecture is", name=3),
    "network of the hub": architecture_case("unknown backbone 'hf-hub:a/b'", name="hf-hub:a/b"),
    "weights from elsewhere": architecture_case("architecture is", pretrained="/etc/passwd"),
    "scale that is a word": architecture_case("scale is x", scale="x"),
}

RUNS = {
    "history cut off": Case(
        EVALUATE, "run/metrics.jsonl:2: damaged", writes("run/metrics.jsonl", '{"epoch": 1}\n{"epo')
    ),
    "history that is not UTF-8": Case(EVALUATE, "run/metrics.jsonl:1: damaged", writes("run/metrics.jsonl", b"\xff")),
    "history that is deep": Case(EVALUATE, "run/metrics.jsonl:1: damaged", writes("run/metrics.jsonl", "[" * 100_000)),
    "environment that is empty": Case(EVALUATE, "run/environment.json: damaged", writes("run/environment.json", "")),
    "environment that is a list": Case(EVALUATE, "run/environment.json: damaged", writes("run/environment.json", "[]")),
    "environment of bytes": Case(EVALUATE, "run/environment.json: damaged", writes("run/environment.json", b"\xff")),
    "skipped images cut off": Case(
        EVALUATE, "run/skipped_images.txt: damaged", writes("run/skipped_images.txt", "a.jpg\tb")
    ),
    "settings that are absent": Case(EVALUATE, "run/config.yaml", lambda here: (here / "run/config.yaml").unlink()),
    "settings of other data": Case(EVALUATE, "training images .* are not those", writes("run/config.yaml", "")),
    "name that leads out": Case(["train", *QUICK, "--name", "../x"], "name is '../x', which is no name of a folder"),
    "no name": Case(["train", *QUICK, "--name", ""], "name is '', which is no name of a folder"),
}

SKIPPING = {
    "too many": Case(
        [*PHOTOS, "--data.on_corrupt_image", "skip"],
        r"1 of 12 images do not decode .8.3%., and data.max_corrupt_images allows 1.0%.*\nclass 0/0.jpg: the file is empty\n$",  # noqa: E501
        writes("photos/class 0/0.jpg", b""),
    ),
    "a whole class": Case(
        [*PHOTOS, "--data.on_corrupt_image", "skip", "--data.max_corrupt_images", "1"],
        r"class 'class 2' has no training image that decodes .of 2.*class 2/.\.jpg: the file is empty",
        lambda here: [(here / f"photos/class 2/{number}.jpg").write_bytes(b"") for number in range(3)],
    ),
}

OFFICIAL = {
    "hostile": Case(
        CONVERT,
        "official.pth: refused: it asks for .*system",
        lambda here: torch.save(
            {"state_dict": HOSTILE["posix.system"](f"touch {here / 'executed'}")}, here / "official.pth"
        ),
    ),
    "absent": Case(CONVERT, "official.pth: No such file"),
    "zero bytes": Case(CONVERT, "official.pth: is not a checkpoint", writes("official.pth", b"")),
    "compressed": Case(CONVERT, "official.pth: refused: its parts are compressed", compress),
    "sparse": official_case(
        {"state_dict": {"a": torch.eye(3).to_sparse()}}, "official.pth: refused: 'a' is no plain array"
    ),
    "larger than it is": official_case(
        {"state_dict": {"a": torch.zeros(1).expand(10**9)}}, "refused: 'a' is no plain array"
    ),
    "without contents": official_case(
        {"state_dict": {"a": torch.empty(3, device="meta")}}, "refused: 'a' is no plain array"
    ),
    "numbers for names": official_case({"state_dict": {1: torch.zeros(3)}}, "has neither 'state_dict'"),
    "another network": official_case({"state_dict": {"a": torch.zeros(3)}}, "these names are unknown: a"),
    "output that exists": Case(["convert", "official.pth", "photos"], "'photos' exists already"),
}

ENVIRONMENT = {
    "output that cannot be made": Case(
        [*PHOTOS, "--output", "/proc/run"], "run folder '/proc/run' cannot be written to"
    ),
    "output below a file": Case(
        [*PHOTOS, "--output", "picture.png/run"], "run folder 'picture.png/run' cannot be written to: Not a directory"
    ),
    "output with a long name": Case([*PHOTOS, "--output", "x" * 300], "File name too long"),
    "output that exists": Case([*PHOTOS, "--output", "run"], "'run' exists already"),
    "output that is a device": Case([*PHOTOS, "--output", "/dev/full"], "'/dev/full' exists already"),
}

TABLES = {
    "arguments": ARGUMENTS, "config": CONFIGS, "list": LIST_FILES, "folder": FOLDERS, "picture": PICTURES, "model": MODELS, "run": RUNS, "skipping": SKIPPING,  # noqa: E501
    "official": OFFICIAL, "environment": ENVIRONMENT,
}  # fmt: skip
CASES = {f"{table}: {name}": case for table, cases in TABLES.items() for name, case in cases.items()}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder with a run, pictures and lists, all of them sound."""
    here = tmp_path_factory.mktemp("sound")
    assert main(["train", "--output", str(here / "run"), *QUICK]) == 0
    write_folder(here / "photos", (5, 4, 3), 16)
    (here / "photos/train.txt").write_text("class 0/0.jpg 0\nclass 1/0.jpg 1\n")
    (here / "photos/test.txt").write_text("class 0/1.jpg 0\n")
    Image.new("RGB", (9, 9)).save(here / "picture.png")
    return here


@pytest.fixture
def here(sound, tmp_path, monkeypatch):
    """A copy of it to spoil, as the current folder."""
    copy = shutil.copytree(sound, tmp_path / "here")
    monkeypatch.chdir(copy)
    return copy


def snapshot(folder: Path) -> dict[str, Any]:
    """Everything below a folder: files with their contents, links with where they lead, the kind of all else."""
    found: dict[str, Any] = {}
    for directory, folders, files in os.walk(folder):
        for path in (Path(directory, name) for name in (*folders, *files)):
            mode = path.lstat().st_mode
            content = path.read_bytes() if stat.S_ISREG(mode) else path.readlink() if stat.S_ISLNK(mode) else None
            found[str(path)] = stat.S_IFMT(mode), content
    return found


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_told_in_a_line_and_changes_nothing(name, here, capsys, monkeypatch):
    arguments, says, prepare = CASES[name]
    prepare(here)
    before = snapshot(here)
    assert main(arguments) == 2
    err = capsys.readouterr().err
    line = "\n".join(line for line in err.splitlines() if not line.startswith(("warning:", "note:"))) + "\n"
    assert line.startswith("longtail: ")
    assert re.search(says, line), line
    assert "Traceback" not in err
    assert len(line.splitlines()) == 1 or says.endswith(r"\n$")
    assert len(err.splitlines()) <= 20
    assert snapshot(here) == before


def test_the_table_is_long():
    assert len(CASES) >= 60


def test_sound_input_passes(here):
    """What every case is a change of."""
    for arguments in ([*LISTS], ["predict", "run", "picture.png"], EVALUATE):
        assert main(arguments) == 0
    assert main([*PHOTOS, "--output", "other"]) == 0


def test_paths_may_lead_out_where_that_is_allowed(here):
    shutil.copytree(here / "photos/class 0", here / "elsewhere")
    line = f"../elsewhere/0.jpg 0\n{here / 'elsewhere/1.jpg'} 0\nclass 1/0.jpg 1\n"
    (here / "photos/train.txt").write_text(line)
    assert main([*LISTS, "--data.allow_outside_root", "true"]) == 0
    (here / "elsewhere/1.jpg").unlink()
    assert main([*LISTS, "--data.allow_outside_root", "true", "--output", "other"]) == 2


# ---- as processes of their own ----


def run_process(*arguments: str, environment: dict[str, str] | None = None, before: Callable[[], None] | None = None):
    return subprocess.run(
        [sys.executable, "-m", "longtail", *arguments],
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        preexec_fn=before,
        timeout=120,
    )


@pytest.mark.parametrize("name", ["arguments: nearly a setting", "config: call", "model: pickle"])
def test_in_a_process(name, here):
    arguments, says, prepare = CASES[name]
    prepare(here)
    before = snapshot(here)
    done = run_process(*arguments)
    assert done.returncode == 2
    assert re.fullmatch(rf"longtail: .*{says}.*\n", done.stderr.decode())
    assert done.stdout == b""
    assert snapshot(here) == before


def test_a_full_disk_leaves_nothing(here):
    """No file may grow beyond 100 kB, as if the disk were full: the weights do not fit."""
    before = snapshot(here)
    done = run_process(*PHOTOS, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)))
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(
        r"longtail: out/model\.safetensors could not be written: File too large\n", done.stderr.decode()
    )
    assert snapshot(here) == before


def test_a_terminal_that_cannot_show_a_name_does_not_end_a_training(here):
    done = run_process(*PHOTOS, "--name", "vögel", environment={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert b"v\\xf6gel" in done.stdout


def test_a_folder_that_cannot_be_written(here):
    (here / "closed").mkdir(mode=0o555)
    if os.access(here / "closed", os.W_OK):
        pytest.skip("this user may write everywhere")
    assert main([*PHOTOS, "--output", "closed/run"]) == 2
    assert list((here / "closed").iterdir()) == []
