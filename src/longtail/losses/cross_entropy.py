"""Cross-entropy, with class weights if the settings ask for them. The function is in `longtail.losses.functional`."""

from longtail.losses.base import Criterion, register


@register("cross_entropy")
class CrossEntropyLoss(Criterion):
    """Cross-entropy of each expert. With ``reweight_after=0``: the class-balanced loss (Cui et al., 2019).

    Args:
        class_counts: training images of each class, C numbers.
        reweight_after: see `Criterion`.
        reweight_beta: see `Criterion`.
        collaborative: see `Criterion`.
    """
