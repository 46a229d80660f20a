"""Wrong input on the command line: one clear line, exit code 2, and no file is created or changed."""

import json
import os
import re
import resource
import shlex
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

QUICK = " --training.epochs 1 --model.backbone resnet20 --model.num_experts 2 --router.train false"
IMAGES = "train --config folder-from-scratch --data.root photos --data.image_size 16 --output out" + QUICK
LISTS = IMAGES + " --data.name list --data.train_list train.txt --data.test_list test.txt"
NAMES = LISTS + " --data.class_names names.txt"
# The first and last images of a class are not held out for testing: there, an image that does not decode is left out.
IN_TRAINING = IMAGES + " --data.subset_seed 1"
SKIP = IMAGES + " --data.on_corrupt_image skip"
MINE = "train --config mine.yaml --output out"
MODEL = "predict model.safetensors image.png"
CONVERT = "convert official.pth out"
EVALUATE = "evaluate run"

Preparation = Callable[[Path], Any]


class Case(NamedTuple):
    """A command, a pattern of its message, and what is wrong with the folder in which it runs."""

    command: str
    message: str
    prepare: Preparation = lambda here: None
    max_lines: int = 1


def write(name: str, content: str | bytes) -> Preparation:
    content = content.encode() if isinstance(content, str) else content
    return lambda here: (here / name).write_bytes(content)


def in_yaml(text: str | bytes, message: str) -> Case:
    return Case(MINE, message, write("mine.yaml", text))


def in_list(line: str | bytes, message: str, max_lines: int = 1) -> Case:
    line = line.encode() if isinstance(line, str) else line
    text = b"class 0/0.jpg 0\nclass 1/0.jpg 1\n" + line + b"\n"
    return Case(LISTS, message, write("photos/train.txt", text), max_lines)


def in_image(name: str, content: bytes, message: str) -> Case:
    return Case(IN_TRAINING, message, write(f"photos/{name}", content))


def in_metadata(message: str, change: Callable[[dict[str, Any]], Any] | None = None, **fields: Any) -> Case:
    """A model file whose metadata are changed, or replaced by the text that ``change`` returns."""

    def prepare(here: Path) -> None:
        with safe_open(here / "run/model.safetensors", "pt") as file:
            metadata = json.loads(file.metadata()["longtail"])
        metadata.pop("sha256")  # an attacker can leave out the checksum
        text = (change or (lambda metadata: metadata.update(fields)))(metadata) or json.dumps(metadata)
        save_file(load_file(here / "run/model.safetensors"), here / "model.safetensors", {"longtail": text})

    return Case(MODEL, rf"model\.safetensors: .*{message}", prepare)


def in_architecture(message: str, **fields: Any) -> Case:
    return in_metadata(message, lambda metadata: metadata["architecture"].update(fields))


def in_checkpoint(content: Any, message: str) -> Case:
    return Case(CONVERT, f"official.pth: .*{message}", lambda here: torch.save(content, here / "official.pth"))


def png(width: int, height: int) -> bytes:
    """A file of a few bytes whose header claims any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def cut(here: Path) -> None:
    (here / "model.safetensors").write_bytes((here / "run/model.safetensors").read_bytes()[:100_000])


def compress(here: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(10)}}, here / "stored.pth")
    with (
        zipfile.ZipFile(here / "stored.pth") as old,
        zipfile.ZipFile(here / "official.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))


def add_class(name: str) -> Preparation:
    def prepare(here: Path) -> None:
        (here / "photos" / name).mkdir()
        shutil.copy(here / "image.png", here / "photos" / name)

    return prepare


def replace_by_pipe(name: str) -> Preparation:
    return lambda here: ((here / name).unlink(missing_ok=True), os.mkfifo(here / name))


def link(name: str, target: str) -> Preparation:
    return lambda here: (here / name).symlink_to(target)


def link_folders_to_each_other(here: Path) -> None:
    """There are 2^40 paths for code that follows every link."""
    for folder, other in ("ab", "ba"):
        (here / "photos/class 0" / folder).mkdir()
        for name in ("x", "y"):
            (here / "photos/class 0" / folder / name).symlink_to(f"../{other}")


NOT_UTF8 = os.fsdecode(b"\xff")

ARGUMENTS = {
    "nothing": Case("", "COMMAND"),
    "unknown command": Case("trian", "trian"),
    "misspelt recipe": Case("train --config digits-lt", "'digits-lt'.* did you mean 'digits-lt-"),
    "misspelt setting": Case("train --trainig.epochs 3", "did you mean 'training.epochs'"),
    "value out of range": Case("train --training.epochs -3", "training.epochs is -3; .* at least 1"),
    "value of another type": Case("train --training.epochs many", "training.epochs is 'many'"),
    "one image and maps of 1 x 1": Case(
        "train --training.batch_size 1 --model.backbone resnet18 --output out",
        "training.batch_size is 1: .* batch norms of resnet18 at 8 pixels; use at least 2",
    ),
    "unknown choice": Case("train --data.on_corrupt_image ignore", "'ignore'.*error or skip"),
    "unknown data set": Case("train --data.name cifar1000", "data.name.*'cifar1000'.*did you mean 'cifar100'"),
    "unknown loss": Case("train --loss.name rides", "loss.name.*'rides'.*did you mean 'ride'"),
    "fraction above 1": Case("train --data.max_corrupt_images 5", "data.max_corrupt_images is 5.0"),
    "absent device": Case("train --device cuda:77", "device.*'cuda:77'"),
    "unknown device": Case("train --device gpu", "device.*'gpu'"),
    "device without memory": Case("train --device meta", "device.*'meta'"),
    "resize of decoded images": Case("train --data.resize 12", "data.resize"),
    "width of 0": Case("train --model.width [0,0]", "width.*0, 0.*at least 1"),
    "abbreviated option": Case("train --out x", "'out'"),
    "absent data": Case("train --data.name folder --data.root no/such/place", "'no/such/place'"),
    "unknown backbone": Case("train --model.backbone resnet19", "'resnet19'; did you mean"),
    "backbone of the hub": Case("train --model.backbone hf-hub:a/b", "'hf-hub:a/b'"),
    "impossible width": Case("train --model.width [33,96]", "33"),
    "crop that needs files": Case("train --augmentation.crop resized", "augmentation.crop 'resized'"),
    "divergence": Case(f"train --output out --training.learning_rate 1e30 --training.warmup 0 {QUICK}", "1e\\+30"),
    "absent teacher": Case("train --teacher no/such/run", "teacher.*'no/such/run'"),
    "absent weights": Case("train --model.backbone resnet18 --model.pretrained no.pth", "'no.pth'"),
    "evaluate nothing": Case("evaluate", "RUN"),
    "evaluate an absent run": Case("evaluate no/such/run", "'no/such/run'"),
    "evaluate training images": Case("evaluate run --split train", "train"),
    "evaluate an absent split": Case("evaluate run --split val", "'val'.*test"),
    "evaluate another model": Case("evaluate run --model.num_experts 2", "'model.num_experts'.*data, evaluation"),
    "threshold without router": Case("evaluate run --compute_budget 1.2", "router"),
    "impossible budget": Case("router run --compute_budget x", "compute.budget.*'x'"),
    "resume a finished run": Case("train --resume run", "'run' is finished"),
    "resume with settings": Case("train --resume run --seed 1", "--resume"),
    "resume nothing": Case("train --resume ''", "config.yaml"),
    "predict without run": Case("predict no/such/run x.png", "'no/such/run' is not a run folder.* does not exist"),
    "export without run": Case("export no/such/run m.onnx", "'no/such/run' is not a run folder.* does not exist"),
    "predict a folder without a model": Case("predict photos x.png", "'photos' is not a run folder.*no model"),
    "predict no image": Case("predict run no.png", "'no.png'"),
    "predict an empty folder": Case("predict run empty", "'empty'", lambda here: (here / "empty").mkdir()),
    "predict a pipe": Case("predict run pipe.png", "'pipe.png'", replace_by_pipe("pipe.png")),
    "predict an empty name": Case("predict run ''", "'' is neither"),
    "weights that are text": Case(
        "train --model.backbone resnet18 --model.pretrained /etc/passwd", "'/etc/passwd' is not a file of weights"
    ),
    "weights that are a pipe": Case(
        "train --model.backbone resnet18 --model.pretrained pipe", "'pipe'", replace_by_pipe("pipe")
    ),
    "model that is a pipe": Case("predict pipe image.png", "pipe: is a pipe", replace_by_pipe("pipe")),
    "model that is a device": Case("predict /dev/zero image.png", "/dev/zero: is a pipe or a device"),
    "prior that is a device": Case("evaluate run --prior /dev/zero", "/dev/zero: is a pipe or a device"),
    "prior that is a pipe": Case("evaluate run --prior pipe", "pipe: is a pipe", replace_by_pipe("pipe")),
    "recipe that is a device": Case("train --config /dev/zero", "/dev/zero"),
    "experiment that is a device": Case("experiment /dev/zero", "/dev/zero"),
    "teacher that is a device": Case("train --teacher /dev/zero", "/dev/zero"),
    "recipes with an option": Case("recipes --all", "--all"),
    "flops of nothing": Case("flops", "MODEL"),
    "flops of no recipe": Case("flops no-such-recipe", "no-such-recipe"),
    "flops of no run": Case("flops photos", "'photos'"),
    "flops of an image": Case("flops image.png", "image.png: .*UTF-8"),
    "flops of unknown classes": Case("flops folder", "--num_classes"),
    "flops of a changed run": Case("flops run --num_classes 3", "--num_classes"),
    "too few shares": Case("flops cifar100-lt-ride --experts_used 60,40", "2 shares.* 3"),
    "shares that are words": Case("flops cifar100-lt-ride --experts_used many", "--experts_used.*'many'"),
    "shares that are no numbers": Case("flops cifar100-lt-ride --experts_used nan,1,1", "nan, 1.0, 1.0"),
    "flops of a width": Case("flops cifar100-lt-ride --model.width [33,96]", "33"),
    "flops of a misspelt setting": Case("flops cifar100-lt-ride --model.backbon x", "did you mean 'model.backbone'"),
}

CONFIGS = {
    "text": in_yaml("an image of a rare bird", "mine.yaml: .*str"),
    "bytes": in_yaml(b"\xff\xfe\x00", "mine.yaml: .*UTF-8"),
    "null character": in_yaml("seed: 1\0", "mine.yaml: .*#x0000"),
    "null character in a value": in_yaml('data: {root: "a\\0b"}', "data.root .*null"),
    "month 13": in_yaml("seed: 1\nname: 2001-13-01", "mine.yaml: .*month"),
    "number of 5000 digits": in_yaml("seed: " + "9" * 5000, "mine.yaml: "),
    "tagged number": in_yaml("seed: !!float x", "mine.yaml: .*'x'"),
    "list as a key": in_yaml("? [a, b]\n: 1", "mine.yaml:1: .*key"),
    "call": in_yaml("seed: !!python/object/apply:os.mkdir [executed]", "mine.yaml:1: .*os.mkdir"),
    "alias": in_yaml("a: &a [x]\nb: [*a, *a]", "mine.yaml:2: .*aliases"),
    "duplicate key": in_yaml("seed: 1\nseed: 2", "mine.yaml:2: .*'seed'"),
    "deep": in_yaml("[" * 5000, "mine.yaml: .*deep"),
    "circular base": in_yaml("base: mine.yaml", "base 'mine.yaml'"),
    "infinite": in_yaml("model: {scale: 1e999}", "model.scale is inf"),
    "not closed": in_yaml("training:\n  epochs: [", "mine.yaml:2: "),
    "folder": Case(MINE, "'mine.yaml'", lambda here: (here / "mine.yaml").mkdir()),
}

LIST_FILES = {
    "path that leaves the root": in_list("../secret.jpg 1", "train.txt:3: '../secret.jpg' .*data.allow_outside_root"),
    "absolute path": in_list("/etc/passwd 1", "train.txt:3: '/etc/passwd' .*data.allow_outside_root"),
    "absent image": in_list("class 1/none.jpg 1", "train.txt:3: .*'class 1/none.jpg'"),
    "folder instead of an image": in_list("class 1 1", "train.txt:3: .*'class 1'"),
    "negative label": in_list("class 1/1.jpg -1", "train.txt:3: '-1'"),
    "label with a gap before it": in_list("class 1/1.jpg 900000000", "train.txt: .*label 2;.*900000000"),
    "null character": in_list(b"a\0b/c.jpg 1", r"train.txt:3: .*'a\\x00b/c.jpg'"),
    "very long name": in_list("x" * 5000 + " 1", "train.txt:3: .*'x{200}\\.\\.\\.'"),
    "control characters": in_list("a\x1b[2J.jpg 1", r"train.txt:3: .*'a\\x1b\[2J.jpg'"),
    "another encoding": in_list(b"caf\xe9.jpg 1", "train.txt:3: .*UTF-8"),
    "hundred wrong lines": in_list("none.jpg 1\n" * 100, "train.txt:3: .*in lines 4 .*and 97 more", 1),
    "empty list": Case(LISTS, "train.txt: .*empty", write("photos/train.txt", "\n")),
    "device": Case(
        LISTS,
        "train.txt: .*not a file",
        lambda here: ((here / "photos/train.txt").unlink(), (here / "photos/train.txt").symlink_to("/dev/zero")),
    ),
    "class names from a pipe": Case(NAMES, "names.txt: .*not a file", replace_by_pipe("photos/names.txt")),
    "pipe": Case(LISTS, "train.txt: .*not a file", replace_by_pipe("photos/train.txt")),
    "absent list": Case(LISTS, "test.txt: .*missing", lambda here: (here / "photos/test.txt").unlink()),
    "class without training images": Case(
        LISTS, "test.txt:2: .*label 7", write("photos/test.txt", "class 0/1.jpg 0\nclass 1/1.jpg 7\n")
    ),
    "duplicate class name": Case(NAMES, "names.txt:2: 'cat'", write("photos/names.txt", "cat\ncat\n")),
    "control characters in a class name": Case(
        NAMES, r"names.txt:2: 'a\\x1b'", write("photos/names.txt", "cat\na\x1b\n")
    ),
    "absent published lists": Case(f"{IMAGES} --data.name places-lt", "places-lt .*Places_LT_train.txt"),
}

FOLDERS = {
    "empty class": Case(
        f"{IMAGES} --data.empty_classes error", "photos/empty'", lambda here: (here / "photos/empty").mkdir()
    ),
    "class without images": Case(
        f"{IMAGES} --data.empty_classes error",
        "photos/notes'",
        lambda here: ((here / "photos/notes").mkdir(), (here / "photos/notes/a.txt").touch()),
    ),
    "single class": Case(IMAGES, "'class 0'", lambda here: [shutil.rmtree(here / f"photos/class {n}") for n in (1, 2)]),
    "no class": Case(IMAGES, "photos", lambda here: (shutil.rmtree(here / "photos"), (here / "photos").mkdir())),
    "file instead of a folder": Case(
        IMAGES, "data.root 'photos'", lambda here: (shutil.rmtree(here / "photos"), (here / "photos").touch())
    ),
    "classes of the test split only": Case(
        IMAGES,
        "the test split has no class of the training split, only 'b'",
        lambda here: [
            shutil.copytree(here / "photos/class 0", here / f"photos/{name}")
            for name in ("train/a", "train/c", "test/b")
        ],
    ),
    "folds": Case(
        IMAGES,
        "'fold1', 'fold2' in 'photos' hold the same folders: 'a', 'b'",
        lambda here: [
            (here / "photos").rename(here / "old"),
            *[shutil.copytree(here / "old/class 0", here / f"photos/fold{n}/{name}") for n in (1, 2) for name in "ab"],
        ],
    ),
    "test without train": Case(
        IMAGES, "test.*train", lambda here: (here / "photos/class 0").rename(here / "photos/test")
    ),
    "class name that is not UTF-8": Case(IMAGES, r"photos/\\udcff'", add_class(NOT_UTF8)),
    "class name with a line break": Case(IMAGES, r"photos/a\\nb'", add_class("a\nb")),
    "link to a parent": Case(IMAGES, "photos/class 0/again'.*link", link("photos/class 0/again", "..")),
    "links to each other": Case(IMAGES, "photos/class 0/.*link", link_folders_to_each_other),
    "no test images": Case(f"{IMAGES} --data.test_fraction 0", "data.test_fraction is 0"),
}

CORRUPT_IMAGES = {
    "empty file": in_image("class 0/0.jpg", b"", "class 0/0.jpg: .*empty"),
    "cut file": in_image("class 0/0.png", png(8, 8)[:40], "class 0/0.png: "),
    "text": in_image("class 0/0.jpg", b"a bird", "class 0/0.jpg: "),
    "program": in_image(
        "class 0/0.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "0.jpg: "
    ),
    "decompression bomb": in_image("class 0/0.png", png(60_000, 60_000), "class 0/0.png: .*bomb"),
    "line": in_image("class 0/0.png", png(60_000, 1), "class 0/0.png: .*60000 x 1"),
    "thirty of them": Case(
        IMAGES,
        r"bad\d+.jpg: .*and 11 more; '.*longtail-corrupt-images-.*\.txt' lists all",
        lambda here: [(here / f"photos/class 0/bad{number}.jpg").touch() for number in range(30)],
        20,
    ),
    "name that is not UTF-8": in_image(f"class 0/{NOT_UTF8}.jpg", b"x", r"class 0/\\udcff.jpg: "),
    "name with a line break": in_image("class 0/a\nb.jpg", b"x", r"class 0/a\\nb.jpg: "),
    "name with control characters": in_image("class 0/\x1b[2J.jpg", b"x", r"class 0/\\x1b\[2J.jpg: "),
    "pipe": Case(IN_TRAINING, "pipe.jpg: .*pipe", replace_by_pipe("photos/class 0/pipe.jpg")),
    "link to nothing": Case(IN_TRAINING, "l.jpg: .*No such file", link("photos/class 0/l.jpg", "nothing")),
    "link to itself": Case(IN_TRAINING, "l.jpg: .*Too many levels", link("photos/class 0/l.jpg", "l.jpg")),
    "predicted": Case("predict run broken.png", "broken.png: ", write("broken.png", b"\x89PNG nothing")),
    "too many to skip": Case(
        SKIP, r"1 of 12 .*8.3.*data.max_corrupt_images .*1.0.*class 0/0.jpg: ", write("photos/class 0/0.jpg", b""), 2
    ),
    "a class without other images": Case(
        f"{SKIP} --data.max_corrupt_images 1",
        r"'class 2' .*class 2/.\.jpg: ",
        lambda here: [(here / f"photos/class 2/{number}.jpg").write_bytes(b"") for number in range(3)],
        3,
    ),
}

MODELS = {
    "empty file": Case(MODEL, "model.safetensors: ", write("model.safetensors", b"")),
    "cut file": Case(MODEL, "model.safetensors: ", cut),
    "endless header": Case(MODEL, "model.safetensors: ", write("model.safetensors", b"\xff" * 8 + b"{}")),
    "pickle": Case(
        MODEL,
        "model.safetensors: ",
        lambda here: torch.save(HOSTILE["posix.system"](f"touch {here / 'executed'}"), here / "model.safetensors"),
    ),
    "absent": Case(MODEL, "'model.safetensors' .* does not exist"),
    "no metadata": Case(
        MODEL, "model.safetensors: ", lambda here: save_file({"a": torch.zeros(1)}, here / "model.safetensors")
    ),
    "deep metadata": in_metadata("recursion", lambda metadata: "[" * 100_000),
    "metadata that are a list": in_metadata("metadata", lambda metadata: "[]"),
    "too few names": in_metadata("10 classes.* 1 ", class_names=["a"]),
    "equal names": in_metadata("class_names.*'a', 'a'", class_names=["a"] * 10),
    "names that are numbers": in_metadata("class_names", class_names=list(range(10))),
    "names with control characters": in_metadata(
        r"class_names.*x1b\[30m", class_names=[f"\x1b[3{n}m" for n in range(10)]
    ),
    "counts that are words": in_metadata("class_counts", class_counts=["x"] * 10),
    "huge images": in_metadata("image_size.*1000000", image_size=10**6),
    "image size that is a word": in_metadata("image_size.*x", image_size="x"),
    "division by zero": in_metadata("std", std=[0, 0, 0]),
    "unknown interpolation": in_metadata("interpolation.*x", interpolation="x"),
    "more experts than weights": in_architecture("num_experts is 20000", num_experts=20_000),
    "more classes than memory": in_architecture("1,?000,?000,?000,?000 ", num_classes=10**12),
    "wider than memory": in_architecture("", width=[10**9, 10**9]),
    "name that is a number": in_architecture("architecture", name=3),
    "network of the hub": in_architecture("'hf-hub:a/b'", name="hf-hub:a/b"),
    "weights from elsewhere": in_architecture("", pretrained="/etc/passwd"),
    "scale that is a word": in_architecture("scale.*x", scale="x"),
}

RUNS = {
    "history cut off": Case(EVALUATE, "run/metrics.jsonl:2: ", write("run/metrics.jsonl", '{"epoch": 1}\n{"epo')),
    "history that is not UTF-8": Case(EVALUATE, "run/metrics.jsonl:1: ", write("run/metrics.jsonl", b"\xff")),
    "deep history": Case(EVALUATE, "run/metrics.jsonl:1: ", write("run/metrics.jsonl", "[" * 100_000)),
    "empty environment": Case(EVALUATE, "run/environment.json: ", write("run/environment.json", "")),
    "environment that is a list": Case(EVALUATE, "run/environment.json: ", write("run/environment.json", "[]")),
    "environment of bytes": Case(EVALUATE, "run/environment.json: ", write("run/environment.json", b"\xff")),
    "skipped images cut off": Case(EVALUATE, "run/skipped_images.txt", write("run/skipped_images.txt", "a.jpg\tb")),
    "absent settings": Case(EVALUATE, "run/config.yaml", lambda here: (here / "run/config.yaml").unlink()),
    "settings of other data": Case(EVALUATE, "run: .*training images", write("run/config.yaml", "")),
    "name that leaves the folder": Case(f"train {QUICK} --name ../x", "name is '../x'"),
    "empty name": Case(f"train {QUICK} --name ''", "name is ''"),
}

OFFICIAL = {
    "hostile": Case(
        CONVERT,
        "official.pth: .*system",
        lambda here: torch.save(
            {"state_dict": HOSTILE["posix.system"](f"touch {here / 'executed'}")}, here / "official.pth"
        ),
    ),
    "absent": Case(CONVERT, "official.pth: No such file"),
    "pipe": Case(CONVERT, "official.pth: is a pipe", replace_by_pipe("official.pth")),
    "device": Case(CONVERT, "official.pth: is a pipe or a device", link("official.pth", "/dev/zero")),
    "empty file": Case(CONVERT, "official.pth: ", write("official.pth", b"")),
    "compressed": Case(CONVERT, "official.pth: .*compressed", compress),
    "sparse": in_checkpoint({"state_dict": {"a": torch.eye(3).to_sparse()}}, "'a'"),
    "larger than its file": in_checkpoint({"state_dict": {"a": torch.zeros(1).expand(10**9)}}, "'a'"),
    "without contents": in_checkpoint({"state_dict": {"a": torch.empty(3, device="meta")}}, "'a'"),
    "numbers as names": in_checkpoint({"state_dict": {1: torch.zeros(3)}}, "'state_dict'"),
    "another network": in_checkpoint({"state_dict": {"a": torch.zeros(3)}}, "a"),
    "existing output": Case("convert official.pth photos", "'photos'"),
}

OUTPUTS = {
    "forbidden folder": Case(f"{IMAGES} --output /proc/run", "'/proc/run'"),
    "below a file": Case(f"{IMAGES} --output image.png/run", "'image.png/run'.*Not a directory"),
    "long name": Case(f"{IMAGES} --output {'x' * 300}", "File name too long"),
    "existing run": Case(f"{IMAGES} --output run", "'run'"),
    "device": Case(f"{IMAGES} --output /dev/full", "'/dev/full'"),
}

TABLES = {
    "arguments": ARGUMENTS, "config": CONFIGS, "list": LIST_FILES, "folder": FOLDERS, "image": CORRUPT_IMAGES,
    "model": MODELS, "run": RUNS, "official": OFFICIAL, "output": OUTPUTS,
}  # fmt: skip
CASES = {f"{table}: {name}": case for table, cases in TABLES.items() for name, case in cases.items()}


@pytest.fixture(scope="module")
def sound(experts_run, tmp_path_factory):
    """A folder with a run, images and lists without errors."""
    here = tmp_path_factory.mktemp("sound")
    shutil.copytree(experts_run.folder, here / "run")
    write_folder(here / "photos", (5, 4, 3), 16)
    (here / "photos/train.txt").write_text("class 0/0.jpg 0\nclass 1/0.jpg 1\n")
    (here / "photos/test.txt").write_text("class 0/1.jpg 0\n")
    Image.new("RGB", (9, 9)).save(here / "image.png")
    return here


@pytest.fixture
def here(sound, tmp_path, monkeypatch):
    """A copy of it, as the current folder."""
    copy = shutil.copytree(sound, tmp_path / "here")
    monkeypatch.chdir(copy)
    return copy


def snapshot(folder: Path) -> dict[str, Any]:
    """Everything below a folder: the kind of each file, the contents of regular files and the targets of links."""
    found: dict[str, Any] = {}
    for directory, folders, files in os.walk(folder):
        for path in (Path(directory, name) for name in (*folders, *files)):
            mode = path.lstat().st_mode
            content = path.read_bytes() if stat.S_ISREG(mode) else path.readlink() if stat.S_ISLNK(mode) else None
            found[str(path)] = stat.S_IFMT(mode), content
    return found


@pytest.mark.parametrize("name", CASES)
def test_wrong_input_is_one_line_and_changes_nothing(name, here, capsys):
    command, pattern, prepare, max_lines = CASES[name]
    prepare(here)
    before = snapshot(here)
    assert main(shlex.split(command)) == 2
    err = capsys.readouterr().err
    message = err[err.index("longtail: ") :]
    assert re.search(pattern, message, re.DOTALL), message
    assert "Traceback" not in err
    assert len(message.splitlines()) <= max_lines
    assert snapshot(here) == before


@pytest.mark.usefixtures("no_plots")
def test_the_input_without_errors_is_accepted(here):
    """Each case above differs from it in one thing."""
    for command in (LISTS, "predict run image.png", EVALUATE):
        assert main(shlex.split(command)) == 0
    assert main(shlex.split(f"{IMAGES} --output other")) == 0


@pytest.mark.usefixtures("no_plots")
def test_paths_may_leave_the_root_if_that_is_allowed(here):
    shutil.copytree(here / "photos/class 0", here / "elsewhere")
    line = f"../elsewhere/0.jpg 0\n{here / 'elsewhere/1.jpg'} 0\nclass 1/0.jpg 1\n"
    (here / "photos/train.txt").write_text(line)
    command = shlex.split(f"{LISTS} --data.allow_outside_root true")
    assert main(command) == 0
    (here / "elsewhere/1.jpg").unlink()
    assert main([*command, "--output", "other"]) == 2


def test_a_folder_that_cannot_be_written(here):
    (here / "closed").mkdir(mode=0o555)
    if os.access(here / "closed", os.W_OK):
        pytest.skip("this user may write everywhere")
    assert main(shlex.split(f"{IMAGES} --output closed/run")) == 2
    assert list((here / "closed").iterdir()) == []


# ---- in processes ----


def run_process(command: str, environment: dict[str, str] | None = None, before: Callable[[], None] | None = None):
    return subprocess.run(
        [sys.executable, "-m", "longtail", *shlex.split(command)],
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        preexec_fn=before,
        timeout=120,
    )


@pytest.mark.parametrize("name", ["arguments: misspelt setting", "config: call"])
def test_in_a_process(name, here):
    command, pattern, prepare, _ = CASES[name]
    prepare(here)
    before = snapshot(here)
    done = run_process(command)
    assert done.returncode == 2
    assert re.fullmatch(rf"longtail: .*{pattern}.*\n", done.stderr.decode())
    assert done.stdout == b""
    assert snapshot(here) == before


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(here):
    """No file may exceed 100 kB, like on a full disk: the weights do not fit."""
    before = snapshot(here)
    done = run_process(IMAGES, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)))
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"longtail: out/model\.safetensors.*File too large\n", done.stderr.decode())
    assert snapshot(here) == before


@pytest.mark.slow
def test_a_terminal_that_cannot_show_a_name_does_not_end_a_training(here):
    done = run_process(f"{IMAGES} --name vögel", environment={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert b"v\\xf6gel" in done.stdout


def test_output_to_a_closed_pipe_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "longtail", "train", "--print_config"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
