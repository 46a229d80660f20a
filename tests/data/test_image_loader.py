"""Batches from image files: the images and labels of the split, with any number of workers."""

import errno
import gc
import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from helpers.loaders import images_and_labels
from PIL import Image

from longtail.data import image_loader, transforms
from longtail.data.image_loader import ImageLoader
from longtail.data.loaders import EpochOrder, MemoryLoader, Normalise
from longtail.data.splits import ImageSplit
from longtail.runtime.shard import SINGLE_SHARD
from longtail.utils.errors import InputError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
NUM = 8
CPU = torch.device("cpu")
UNCHANGED = transforms.eval_transform(12, 12)
AUGMENTATION = transforms.ImageAugmentation("padded", 2, flip=True, rotation=30.0, color_jitter=(0.4, 0.4, 0.4, 0.1))
RANDOM = transforms.train_transform(10, AUGMENTATION, 12)


@pytest.fixture
def split(tmp_path):
    """Eight different images of noise."""
    paths = []
    for i in range(NUM):
        pixels = np.random.default_rng(i).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        paths.append(tmp_path / f"image {i} ä.png")
        Image.fromarray(pixels).save(paths[-1])
    return ImageSplit(np.array([2, 0, 1, 1, 0, 2, 5, 3], dtype=np.int64), paths=np.array(paths, dtype=object))


def loader(split, transform=RANDOM, batch_size=3, *, seed=0, shuffle=True, shard=SINGLE_SHARD, device=CPU, **options):
    order = EpochOrder(len(split), batch_size, seed, shuffle, shard=shard)
    return ImageLoader(split, transform, order, device=device, normalise=Normalise(MEAN, STD, device), **options)


def memory_loader(split, batch_size=3, *, shuffle=True):
    decoded = ImageSplit(split.labels, pixels_of(split))
    order = EpochOrder(len(split), batch_size, shuffle=shuffle)
    return MemoryLoader(decoded, order, device=CPU, normalise=Normalise(MEAN, STD, CPU))


def pixels_of(split) -> np.ndarray:
    return np.stack([np.array(Image.open(path)) for path in split.paths])


def epoch_of(source, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return images_and_labels(source.epoch(epoch))


def assert_equal(first, second):
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


# ---- batches ----


def test_batches_are_normalised_and_in_order(split):
    plain = loader(split, UNCHANGED, shuffle=False)
    assert (len(plain), plain.num_images) == (3, NUM)
    batches = list(plain.epoch(0))
    assert [len(batch.labels) for batch in batches] == [3, 3, 2]
    for batch in batches:
        assert (batch.inputs.dtype, batch.inputs.shape[1:]) == (torch.float32, (3, 12, 12))
        assert batch.inputs.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.dtype == torch.int64
        assert batch.rows is None
        assert batch.soft_targets is None
    images, labels = images_and_labels(batches)
    expected = (pixels_of(split) / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(images.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
    assert labels.tolist() == split.labels.tolist()


def test_without_shuffling_all_epochs_are_equal(split):
    plain = loader(split, UNCHANGED, shuffle=False)
    assert_equal(epoch_of(plain, 0), epoch_of(plain, 1))


def test_files_and_decoded_pixels_give_the_same_batches(split):
    from_files, from_memory = loader(split, UNCHANGED), memory_loader(split)
    assert len(from_files) == len(from_memory)
    for epoch in (0, 3):
        assert_equal(epoch_of(from_files, epoch), epoch_of(from_memory, epoch))


def test_every_image_comes_once_with_its_label(split):
    images, labels = epoch_of(loader(split, UNCHANGED), 2)
    in_order, _ = epoch_of(loader(split, UNCHANGED, shuffle=False), 0)
    order = []
    for image in images:
        distances = [(image - candidate).abs().max() for candidate in in_order]
        order.append(int(np.argmin(distances)))
        assert distances[order[-1]] == 0
    assert sorted(order) == list(range(NUM))
    assert order != list(range(NUM))
    assert labels.tolist() == split.labels[order].tolist()


def test_a_batch_may_be_larger_than_the_split(split):
    source = loader(split, batch_size=100)
    assert len(source) == 1
    assert epoch_of(source, 0)[0].shape == (NUM, 3, 10, 10)


# ---- repeated epochs ----


def test_the_number_of_workers_changes_nothing(split):
    """Epochs in any order, also after one that was not finished."""
    alone, with_workers = loader(split), loader(split, workers=2)
    first, second = epoch_of(alone, 0), epoch_of(alone, 1)
    assert_equal(epoch_of(with_workers, 1), second)
    next(iter(with_workers.epoch(5)))
    assert_equal(epoch_of(with_workers, 0), first)
    assert_equal(epoch_of(with_workers, 1), second)
    unfinished = alone.epoch(5)
    next(unfinished)
    assert_equal(epoch_of(alone, 1), second)


def test_order_and_augmentation_depend_on_epoch_and_seed(split):
    for transform, shuffle in ((UNCHANGED, True), (RANDOM, False)):
        first = epoch_of(loader(split, transform, shuffle=shuffle), 0)
        assert_equal(epoch_of(loader(split, transform, shuffle=shuffle), 0), first)
        for images, _ in (
            epoch_of(loader(split, transform, shuffle=shuffle), 1),
            epoch_of(loader(split, transform, shuffle=shuffle, seed=1), 0),
        ):
            assert not torch.equal(images, first[0])


def test_the_augmentation_of_an_image_does_not_depend_on_its_batch(split):
    assert_equal(epoch_of(loader(split, batch_size=2), 0), epoch_of(loader(split, batch_size=3), 0))


def test_images_of_an_epoch_are_augmented_differently(split):
    repeated = ImageSplit(split.labels, paths=np.array([split.paths[0]] * NUM, dtype=object))
    images, _ = epoch_of(loader(repeated, shuffle=False), 0)
    assert len({image.numpy().tobytes() for image in images}) == NUM


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generator_is_left_alone(split, workers):
    torch.manual_seed(1)
    first = epoch_of(loader(split, workers=workers), 0)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert_equal(epoch_of(loader(split, workers=workers), 0), first)
    assert torch.equal(torch.get_rng_state(), state)


# ---- images that do not decode ----


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_does_not_decode_is_named_in_one_line(split, workers):
    split.paths[4].write_bytes(b"")
    batches = loader(split, UNCHANGED, shuffle=False, workers=workers).epoch(0)
    next(batches)
    message = error_of(next, batches)
    assert message.startswith(f"{split.paths[4]}: ")
    assert "empty" in message
    assert "\n" not in message


def error_of(function, *arguments) -> str:
    try:
        function(*arguments)
    except InputError as error:  # `pytest.raises` would keep it, and with it the workers, until they are killed
        return str(error)
    pytest.fail("no error")


def test_workers_end_with_their_loader_after_an_error(split):
    split.paths[4].write_bytes(b"")
    source = loader(split, UNCHANGED, workers=2)
    error_of(list, source.epoch(0))
    start = time.monotonic()
    del source
    gc.collect()
    assert time.monotonic() - start < 4  # torch waits 5 s before it terminates a worker, which ignores that
    assert not multiprocessing.active_children()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_those_of_the_cpu(split):
    images, labels = epoch_of(loader(split, device=torch.device("cuda"), workers=2), 0)
    assert images.is_cuda
    assert labels.is_cuda
    expected = epoch_of(loader(split), 0)
    torch.testing.assert_close(images.cpu(), expected[0])
    assert torch.equal(labels.cpu(), expected[1])


@pytest.mark.parametrize(("num", "shuffle", "sizes"), [(8, True, [3, 3, 2]), (7, True, [3, 3]), (7, False, [3, 3, 1])])
def test_a_shuffled_batch_has_at_least_two_images(split, num, shuffle, sizes):
    """Batch norm cannot train on one value for each channel; each epoch leaves out another image."""
    smaller = split.take(np.arange(num))
    for source in (loader(smaller, UNCHANGED, shuffle=shuffle), memory_loader(smaller, shuffle=shuffle)):
        assert [len(batch.labels) for batch in source.epoch(1)] == sizes
        assert len(source) == len(sizes)
        assert source.num_images == sum(sizes)


@pytest.mark.parametrize("shuffle", [False, True])
def test_labels_of_an_epoch_without_its_images(split, shuffle):
    source = loader(split, UNCHANGED, shuffle=shuffle)
    for epoch in (1, 2):
        assert torch.equal(source.labels(epoch), epoch_of(source, epoch)[1])


# ---- workers that end or do not answer ----


def long_split(split):
    return split.take(np.arange(NUM).repeat(8))


@pytest.mark.parametrize("waiting", [True, False])
def test_a_killed_worker_is_an_error(split, waiting):
    """Where a batch is waited for, and not before: torch's handler would raise it in the middle of a step."""
    source = loader(long_split(split), batch_size=1, workers=1)
    batches = source.epoch(1)
    next(batches)
    (worker,) = source._workers.processes
    if waiting:
        os.kill(worker.pid, signal.SIGSTOP)
        threading.Timer(0.5, worker.kill).start()
    else:
        os.kill(worker.pid, signal.SIGKILL)
        time.sleep(0.5)
    with pytest.raises(InputError, match=r"killed: .*data\.workers"):
        list(batches)


def test_all_killed_workers_are_one_error(split, monkeypatch):
    """The signal about the second may come at any time, even before the earlier handler is there again."""
    before, set_handler = signal.getsignal(signal.SIGCHLD), signal.signal

    def signalled(number, handler):
        if handler == before:
            os.kill(os.getpid(), signal.SIGCHLD)
        set_handler(number, handler)

    source = loader(long_split(split), batch_size=1, workers=2)
    batches = source.epoch(1)
    next(batches)
    for worker in source._workers.processes:
        worker.kill()
    monkeypatch.setattr(signal, "signal", signalled)
    with pytest.raises(InputError, match="killed"):
        list(batches)
    assert signal.getsignal(signal.SIGCHLD) == before


def test_workers_that_are_ended_are_no_error(split):
    """As after an interrupt, which may come before the wait is over."""
    source = loader(long_split(split), batch_size=1, workers=2)
    next(source.epoch(1))
    with source._workers.watched():
        source._workers.end()
        for worker in source._workers.processes:
            worker.join(10)
    with pytest.raises(InputError, match="killed"):  # but nothing comes from them any more
        next(source.epoch(2))


def test_the_handler_of_torch_is_removed(split):
    """Another loader in the process may have left it; it raises an error in the middle of a step."""

    def handler(*signal_and_frame):
        pytest.fail("in the middle of a step")

    handler.__module__ = "torch.utils.data"
    before = signal.signal(signal.SIGCHLD, handler)
    try:
        batches = loader(long_split(split), batch_size=1, workers=1).epoch(1)
        next(batches)
        os.kill(os.getpid(), signal.SIGCHLD)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_pause_of_the_job_is_no_wait():
    """A pause makes one short wait longer, and short waits are counted."""
    workers, ended, waits = image_loader._Workers(), threading.Event(), []
    ended.wait = lambda seconds: waits.append(seconds)
    image_loader._limit(workers, 600.0, ended)
    assert workers.gave_up
    assert sum(waits) == pytest.approx(600)
    assert len(waits) > 10


@pytest.mark.parametrize("waiting", [True, False])
def test_a_worker_that_is_killed_with_a_lock(split, waiting, monkeypatch):
    """Workers look at torch's event at each batch. Here this process has its lock, and a thread waits forever."""
    source = loader(long_split(split), batch_size=1, workers=1)
    batches = source.epoch(1)
    next(batches)
    source._batches._iterator._workers_done_event._cond.acquire()
    source._batches._iterator._pin_memory_thread = threading.Thread(target=threading.Event().wait, daemon=True)
    source._batches._iterator._pin_memory_thread.start()
    source._batches._iterator._pin_memory_thread_done_event = threading.Event()
    (worker,) = source._workers.processes
    if waiting:
        # Otherwise the wait often ends with another error, because the worker closes its connections first.
        monkeypatch.setattr(source._batches._iterator._data_queue, "get", lambda timeout: time.sleep(timeout))
        threading.Timer(0.5, worker.kill).start()
    else:
        worker.kill()
    error_of(list, batches)
    end = threading.Thread(target=source._batches._iterator._shutdown_workers, daemon=True)
    end.start()
    end.join(30)
    assert not end.is_alive()


def test_a_frozen_worker_is_given_up(split, monkeypatch):
    source = loader(long_split(split), batch_size=1, workers=2)
    batches = source.epoch(1)
    next(batches)
    monkeypatch.setattr(image_loader, "PATIENCE", 1.0)  # only now: on a busy machine workers start slowly
    for worker in source._workers.processes:
        os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(InputError, match=r"no image .* minutes: .*shared memory.*data\.workers"):
        list(batches)
    for worker in source._workers.processes:
        worker.join(10)
        assert not worker.is_alive()


def test_batches_that_do_not_fit_into_shared_memory_travel_through_a_pipe(split, monkeypatch):
    expected = epoch_of(loader(split), 1)
    sizes = []
    monkeypatch.setattr(image_loader, "_fits_into_shared_memory", lambda size: sizes.append(size) or False)
    monkeypatch.setattr(torch.multiprocessing.reductions, "reduce_storage", None)  # how tensors would travel
    assert_equal(epoch_of(loader(split, workers=2), 1), expected)
    assert not sizes  # not asked here, where nothing travels


def test_workers_that_cannot_start(split, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = loader(split, workers=1)
    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", full)
    with pytest.raises(InputError, match=r"cannot start \(No space.*shared memory.*data\.workers"):
        epoch_of(source, 1)
