"""How several processes share the images of an epoch, pluralize out by hand."""

import pytest
import torch
from helpers.loaders import loader, small_split

from longtail.runtime.shard import ALL, Shard, images_per_epoch


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize(("num_images", "batch_size"), [(20, 8), (24, 8), (5, 8), (1, 4), (33, 10)])
@pytest.mark.parametrize("whole", [False, True])
def test_every_image_has_one_process(num_images, batch_size, count, whole):
    alone = ALL.batches(num_images, batch_size)
    shares = [Shard(index, count, whole).batches(num_images, batch_size) for index in range(count)]
    positions = [list(range(num_images))[part] for share in shares for part in share]
    assert sorted(p for part in positions for p in part) == list(range(num_images))
    if whole:
        assert [share[k] for k in range(len(alone)) for share in shares if k < len(share)] == alone
    else:
        for number, part in enumerate(alone):
            sizes = [share[number].stop - share[number].start for share in shares]
            assert sum(sizes) == part.stop - part.start
            assert max(sizes) - min(sizes) <= 1


def test_a_short_last_batch_is_left_out():
    assert images_per_epoch(20, 8) == 20
    assert images_per_epoch(17, 8, least=2) == 16
    assert images_per_epoch(18, 8, least=2) == 18
    assert images_per_epoch(18, 8, least=4) == 16
    assert images_per_epoch(1, 8, least=2) == 1  # nothing else is there
    assert images_per_epoch(16, 8, least=4) == 16


@pytest.mark.parametrize("whole", [False, True])
def test_shares_of_a_loader_are_its_batches(whole):
    split = small_split(num=30)
    options = {"batch_size": 8, "shuffle": True, "padding": 2, "flip": True, "rotation": 10.0}
    alone = list(loader(split, **options).epoch(3))
    shares = [loader(split, **options, shard=Shard(index, 2, whole)) for index in range(2)]
    if whole:
        theirs = [list(share.epoch(3)) for share in shares]
        joined = [batch for pair in zip(*theirs, strict=True) for batch in pair]
    else:
        joined = [
            tuple(torch.cat(parts) for parts in zip(a, b, strict=True))
            for a, b in zip(*(share.epoch(3) for share in shares), strict=True)
        ]
    assert len(joined) == len(alone)
    for ours, expected in zip(joined, alone, strict=True):
        assert torch.equal(ours[0], expected[0])
        assert torch.equal(ours[1], expected[1])


@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_an_epoch_from_the_middle(first):
    whole = loader(small_split(num=30), batch_size=8, shuffle=True, padding=1, rotation=3.0)
    expected = list(whole.epoch(2))[first:]
    ours = list(whole.epoch(2, first))
    assert len(ours) == len(expected)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(ours, expected, strict=True))
