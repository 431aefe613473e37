"""The shape of the networks that algorithms build for a space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ...errors import ConfigError, UnknownSettingError, nearest

ACTIVATIONS = ("tanh", "relu", "linear")


@dataclass
class DefaultModelConfig:
    """A multi-layer perceptron over the flattened observation (one-hot for Discrete).

    Args:
        fcnet_hiddens: widths of the hidden layers.
        fcnet_activation: `tanh`, `relu` or `linear`, after each of them.
        head_fcnet_hiddens: widths of further layers of each head (policy, value), after the encoder.
        head_fcnet_activation: after each of those.
        vf_share_layers: policy and value share the encoder. PPO's own default is False.
        free_log_std: for Box actions: the logarithms of the standard deviations are parameters, not outputs of the network.
        log_std_clip_param: those logarithms are held to [-this, this].

    >>> DefaultModelConfig(fcnet_hiddens=[64, 64]).fcnet_activation
    'tanh'
    """

    fcnet_hiddens: list[int] = field(default_factory=lambda: [256, 256])
    fcnet_activation: str = "tanh"
    head_fcnet_hiddens: list[int] = field(default_factory=list)
    head_fcnet_activation: str = "relu"
    vf_share_layers: bool = True
    free_log_std: bool = False
    log_std_clip_param: float = 20.0

    def __post_init__(self) -> None:
        for name in ("fcnet_hiddens", "head_fcnet_hiddens"):
            widths = getattr(self, name)
            if not isinstance(widths, (list, tuple)) or not all(isinstance(width, int) and width > 0 for width in widths):
                raise ConfigError(f"model_config: {name}={widths!r} must be a list of widths > 0")
            setattr(self, name, list(widths))
        for name in ("fcnet_activation", "head_fcnet_activation"):
            if getattr(self, name) not in ACTIVATIONS:
                raise ConfigError(f"model_config: {name}={getattr(self, name)!r} must be one of {', '.join(ACTIVATIONS)}")

    @classmethod
    def of(cls, given: DefaultModelConfig | Mapping[str, Any], /, **defaults: Any) -> DefaultModelConfig:
        """From what a user gave; `defaults` of the algorithm where it says nothing.

        Raises:
            UnknownSettingError: a key that is not there.
        """
        if isinstance(given, DefaultModelConfig):
            return given
        settings = dict(given)
        known = {field.name for field in fields(cls)}
        for name in settings:
            if name not in known:
                raise UnknownSettingError(f"model_config has no {name!r}{nearest(str(name), known)}")
        return cls(**{**defaults, **settings})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
