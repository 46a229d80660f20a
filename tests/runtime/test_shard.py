"""How several processes divide the images of an epoch."""

import pytest
import torch
from helpers.loaders import loader, small_split

from longtail.runtime.shard import SINGLE_SHARD, Shard, images_per_epoch


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize(("num_images", "batch_size"), [(20, 8), (24, 8), (5, 8), (1, 4), (33, 10)])
@pytest.mark.parametrize("full_batches", [False, True])
def test_every_image_belongs_to_one_process(num_images, batch_size, size, full_batches):
    batches = SINGLE_SHARD.batches(num_images, batch_size)
    assert all(batch.epoch_rows == batch.batch for batch in batches)
    shares = [Shard(rank, size, full_batches).batches(num_images, batch_size) for rank in range(size)]
    positions = [list(range(num_images))[batch.epoch_rows] for share in shares for batch in share]
    assert sorted(position for part in positions for position in part) == list(range(num_images))
    if full_batches:
        assert [share[k] for k in range(len(batches)) for share in shares if k < len(share)] == batches
    else:
        for number, batch in enumerate(batches):
            assert all(share[number].batch == batch.batch for share in shares)
            sizes = [share[number].rows.stop - share[number].rows.start for share in shares]
            assert sum(sizes) == batch.rows.stop
            assert max(sizes) - min(sizes) <= 1


def test_a_short_last_batch_is_dropped():
    assert images_per_epoch(20, 8) == 20
    assert images_per_epoch(17, 8, min_batch=2) == 16
    assert images_per_epoch(18, 8, min_batch=2) == 18
    assert images_per_epoch(18, 8, min_batch=4) == 16
    assert images_per_epoch(1, 8, min_batch=2) == 1  # the only batch
    assert images_per_epoch(16, 8, min_batch=4) == 16


@pytest.mark.parametrize("full_batches", [False, True])
def test_shares_of_a_loader_make_up_its_batches(full_batches):
    split = small_split(num=30)
    options = {"batch_size": 8, "shuffle": True, "padding": 2, "flip": True, "rotation": 10.0}
    batches = list(loader(split, **options).epoch(3))
    shares = [list(loader(split, **options, shard=Shard(rank, 2, full_batches)).epoch(3)) for rank in range(2)]
    if full_batches:
        joined = [batch for pair in zip(*shares, strict=True) for batch in pair]
        assert all(batch.rows is None for batch in joined)
        images = [batch.inputs for batch in joined]
    else:
        pairs = list(zip(*shares, strict=True))
        for pair, batch in zip(pairs, batches, strict=True):
            assert all(torch.equal(part.labels, batch.labels) for part in pair)
            assert torch.equal(torch.cat([part.own_labels for part in pair]), batch.labels)
        joined = [first for first, _ in pairs]
        images = [torch.cat([first.inputs, second.inputs]) for first, second in pairs]
    for batch, part, own_images in zip(batches, joined, images, strict=True):
        assert torch.equal(own_images, batch.inputs)
        assert torch.equal(part.labels, batch.labels)


@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_an_epoch_can_start_in_the_middle(first):
    source = loader(small_split(num=30), batch_size=8, shuffle=True, padding=1, rotation=3.0)
    expected, batches = list(source.epoch(2))[first:], list(source.epoch(2, first))
    assert len(batches) == len(expected)
    for batch, same in zip(batches, expected, strict=True):
        assert torch.equal(batch.inputs, same.inputs)
        assert torch.equal(batch.labels, same.labels)
