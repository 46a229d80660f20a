"""Batches from files: the right images and labels, and the same ones whatever the number of workers."""

import numpy as np
import pytest
import torch
from PIL import Image

from longtail.data import transforms
from longtail.data.image_loader import FileLoader
from longtail.data.loaders import MemoryLoader, Normalise
from longtail.data.splits import ImageSplit, as_paths
from longtail.utils.errors import InputError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
NUM = 8


@pytest.fixture
def split(tmp_path):
    """Eight pictures of noise, each its own."""
    paths = []
    for i in range(NUM):
        pixels = np.random.default_rng(i).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        paths.append(tmp_path / f"picture {i} ä.png")
        Image.fromarray(pixels).save(paths[-1])
    return ImageSplit(np.array([2, 0, 1, 1, 0, 2, 5, 3], dtype=np.int64), paths=as_paths(paths))


AS_IS = transforms.eval_transform(12, 12)
GIVEN = {
    "device": torch.device("cpu"),
    "normalise": Normalise(MEAN, STD, torch.device("cpu")),
    "seed": 0,
    "shuffle": True,
}
RANDOM = transforms.train_transform(10, "padded", 2, (0.1, 1.0), True, 30.0, (0.4, 0.4, 0.4, 0.1), 12)


def loader(split, transform=RANDOM, batch_size=3, **options):
    return FileLoader(split, transform, batch_size, **{**GIVEN, **options})


def gathered(loader, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*loader.epoch(epoch), strict=True)
    return torch.cat(images), torch.cat(labels)


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


def pixels_of(split) -> np.ndarray:
    return np.stack([np.array(Image.open(path)) for path in split.paths])


# ---- what a batch is ----


def test_batches_are_normalised_and_in_order(split):
    plain = loader(split, AS_IS, shuffle=False)
    assert (len(plain), plain.num_images) == (3, NUM)
    batches = list(plain.epoch(0))
    assert [len(labels) for _, labels in batches] == [3, 3, 2]
    for images, labels in batches:
        assert (images.dtype, images.shape[1:]) == (torch.float32, (3, 12, 12))
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    expected = (pixels_of(split) / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(images.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
    assert labels.tolist() == split.labels.tolist()


def test_without_shuffling_every_epoch_is_the_same(split):
    plain = loader(split, AS_IS, shuffle=False)
    assert_same(gathered(plain, 0), gathered(plain, 1))


def test_files_and_decoded_pixels_give_the_same_batches(split):
    from_files = FileLoader(split, AS_IS, 3, **GIVEN)
    from_memory = MemoryLoader(ImageSplit(split.labels, pixels_of(split)), 3, **GIVEN)
    assert len(from_files) == len(from_memory)
    for epoch in (0, 3):
        assert_same(gathered(from_files, epoch), gathered(from_memory, epoch))


def test_every_image_comes_once_with_its_label(split):
    images, labels = gathered(loader(split, AS_IS), 2)
    order = []
    for image in images:
        distances = [(image - other).abs().max() for other in gathered(loader(split, AS_IS, shuffle=False), 0)[0]]
        order.append(int(np.argmin(distances)))
        assert distances[order[-1]] == 0
    assert sorted(order) == list(range(NUM))
    assert order != list(range(NUM))
    assert labels.tolist() == split.labels[order].tolist()


def test_batches_may_be_larger_than_the_split(split):
    whole = loader(split, batch_size=100)
    assert len(whole) == 1
    assert gathered(whole, 0)[0].shape == (NUM, 3, 10, 10)


# ---- the same again ----


def test_workers_change_nothing(split):
    """Two epochs, the second first, with an epoch left half-way in between."""
    alone, helped = loader(split), loader(split, workers=2)
    first, second = gathered(alone, 0), gathered(alone, 1)
    assert_same(gathered(helped, 1), second)
    next(iter(helped.epoch(5)))
    assert_same(gathered(helped, 0), first)
    assert_same(gathered(helped, 1), second)
    left = alone.epoch(5)
    next(left)
    assert_same(gathered(alone, 1), second)


def test_epochs_and_seeds_differ_in_order_and_in_changes(split):
    for transform, shuffle in ((AS_IS, True), (RANDOM, False)):
        first = gathered(loader(split, transform, shuffle=shuffle), 0)
        assert_same(gathered(loader(split, transform, shuffle=shuffle), 0), first)
        for other in (
            gathered(loader(split, transform, shuffle=shuffle), 1),
            gathered(loader(split, transform, shuffle=shuffle, seed=1), 0),
        ):
            assert not torch.equal(other[0], first[0])


def test_changes_belong_to_the_image_whatever_the_batch(split):
    first = gathered(loader(split, batch_size=3), 0)
    assert_same(gathered(loader(split, batch_size=2), 0), first)


def test_images_of_an_epoch_are_changed_differently(split):
    same = ImageSplit(split.labels, paths=as_paths([split.paths[0]] * NUM))
    images, _ = gathered(loader(same, shuffle=False), 0)
    assert len({image.numpy().tobytes() for image in images}) == NUM


@pytest.mark.parametrize("workers", [0, 2])
def test_global_generator_is_neither_used_nor_moved(split, workers):
    torch.manual_seed(1)
    first = gathered(loader(split, workers=workers), 0)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert_same(gathered(loader(split, workers=workers), 0), first)
    assert torch.equal(torch.get_rng_state(), state)


# ---- pictures that do not decode ----


@pytest.mark.parametrize("workers", [0, 2])
def test_picture_that_does_not_decode_is_named_in_one_line(split, workers):
    split.paths[4].write_bytes(b"")
    spoilt = loader(split, AS_IS, shuffle=False, workers=workers)
    batches = spoilt.epoch(0)
    next(batches)
    with pytest.raises(InputError) as refused:
        next(batches)
    assert str(refused.value) == f"{split.paths[4]}: does not decode (the file is empty); mend or remove the file"


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_that_do_not_decode_may_be_left_out(split, workers):
    images, labels = gathered(loader(split, AS_IS, shuffle=False), 0)
    bad = [1, 3, 4, 5]  # batches lose one picture, all three, none
    for position in bad:
        split.paths[position].write_bytes(b"")
    errors = []
    rest = loader(split, AS_IS, shuffle=False, workers=workers, on_corrupt_image=errors.append)
    batches = list(rest.epoch(0))
    assert [len(labels) for _, labels in batches] == [2, 2]
    sound = [position for position in range(NUM) if position not in bad]
    assert torch.equal(torch.cat([part for part, _ in batches]), images[sound])
    assert torch.equal(torch.cat([part for _, part in batches]), labels[sound])
    assert [str(error).split(":")[0] for error in errors] == [str(split.paths[position]) for position in bad]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_those_of_the_cpu(split):
    on_gpu = loader(split, device=torch.device("cuda"), workers=2)
    images, labels = gathered(on_gpu, 0)
    assert images.is_cuda
    assert labels.is_cuda
    expected = gathered(loader(split), 0)
    torch.testing.assert_close(images.cpu(), expected[0])
    assert torch.equal(labels.cpu(), expected[1])


@pytest.mark.parametrize(("num", "shuffle", "sizes"), [(8, True, [3, 3, 2]), (7, True, [3, 3]), (7, False, [3, 3, 1])])
def test_no_image_is_alone_in_a_shuffled_batch(split, num, shuffle, sizes):
    """Batch norm cannot train on one value per channel; another image is left out in each epoch."""
    part = split.take(np.arange(num))
    files = loader(part, AS_IS, shuffle=shuffle)
    memory = MemoryLoader(ImageSplit(part.labels, pixels_of(part)), 3, **{**GIVEN, "shuffle": shuffle})
    for one in (files, memory):
        batches = list(one.epoch(1))
        assert [len(labels) for _, labels in batches] == sizes
        assert len(one) == len(sizes)
        assert one.num_images == sum(sizes)


@pytest.mark.parametrize("shuffle", [False, True])
def test_labels_of_an_epoch_without_its_pictures(split, shuffle):
    source = loader(split, AS_IS, shuffle=shuffle)
    for epoch in (1, 2):
        assert torch.equal(source.labels(epoch), torch.cat([labels for _, labels in source.epoch(epoch)]))
