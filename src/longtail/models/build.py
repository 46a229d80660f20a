"""Settings -> the arguments that build a model."""

from typing import Any

from longtail.config.schema import ClassifierConfig, ModelConfig, RouterConfig

OPTIONAL = ("experts_from", "depths", "window_size", "drop_rate", "drop_path_rate")
"""Settings that not every network takes; they are passed on only if they are set"""


def architecture(settings: ModelConfig, num_classes: int, image_size: int) -> dict[str, Any]:
    """Returns the arguments of `longtail.create_model`, without pretrained weights, average and router."""
    return {
        "name": settings.backbone,
        "num_classes": num_classes,
        "num_experts": settings.num_experts,
        "width": settings.width,
        "head": settings.head,
        "scale": settings.scale,
        "expert_stages": settings.expert_stages,
        "image_size": image_size,
        **{name: value for name in OPTIONAL if (value := getattr(settings, name))},
    }


def head_options(settings: ClassifierConfig, scale: float) -> dict[str, Any]:
    """Returns what other classifiers change in the `architecture`; ``scale`` is that of the model's settings."""
    if settings.method != "nearest-mean":
        return {}
    return {"head": "cosine", "scale": scale} if settings.distance == "cosine" else {"head": "linear"}


def router_options(settings: RouterConfig) -> dict[str, Any]:
    """Returns the arguments of `longtail.models.multi_expert.create_router`."""
    return {name: getattr(settings, name) for name in ("top_choices", "hidden", "shared", "threshold")}
