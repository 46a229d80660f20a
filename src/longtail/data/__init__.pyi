# The public names, for type checkers and, at run time, for `longtail/data/__init__.py`.
from . import imbalance as imbalance
from . import samplers as samplers
from . import sources as sources
from . import splits as splits
from .imbalance import ShotThresholds as ShotThresholds
from .imbalance import choose_subset as choose_subset
from .imbalance import hold_out as hold_out
from .imbalance import imbalanced_counts as imbalanced_counts
from .imbalance import shot_groups as shot_groups
from .samplers import LongTailSampler as LongTailSampler
from .samplers import class_probabilities as class_probabilities
from .sources import list_sources as list_sources
from .sources import load_source as load_source
from .sources import register as register
from .sources import source_info as source_info
from .splits import DataSplits as DataSplits
from .splits import ImageSplit as ImageSplit
