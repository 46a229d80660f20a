"""Names of splits as people write them: training_set, Test Data, valid1, seg_train, holdout."""

import re
from typing import NamedTuple

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "holdout"), "test"),
}
"""Word -> split"""

FILLERS = ("set", "data", "dataset", "images", "image", "imgs", "img", "pictures", "photos", "folder", "split")
"""Words that say nothing: train_images is train"""

VAL_IS_TEST = "There is no test split, so the validation images are the test split; nothing is chosen on them"
"""What is said about a data set with training and validation images only"""

_WORD = re.compile(r"[^\W\d_]+")
_SPLIT_WORD = re.compile(rf"({'|'.join(SPLIT_WORDS)})(?:{'|'.join(FILLERS)})?")


class SplitName(NamedTuple):
    """What a name says about a split."""

    split: str
    """train, val or test"""

    stem: tuple[str, ...]
    """The other words, without fillers and digits. Folders of one data set have the same: seg_train, seg_test"""


def parse_split_name(name: str) -> SplitName | None:
    """Returns the split that the first or the last word of a name says, or None.

    Example:
        >>> parse_split_name("seg_Train2")
        SplitName(split='train', stem=('seg',))
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = [word.lower() for word in _WORD.findall(re.sub(r"(?i)hold[-_ ]out", "holdout", spaced))]
    for position in (0, -1) if words else ():
        if match := _SPLIT_WORD.fullmatch(words[position]):
            del words[position]
            return SplitName(SPLIT_WORDS[match[1]], tuple(word for word in words if word not in FILLERS))
    return None
