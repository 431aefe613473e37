"""What happens to observations between environment and network."""

from __future__ import annotations

from typing import Any


class MeanStdFilter:
    """Observations to mean 0 and deviation 1, over all that every env runner has seen: `env_to_module_connector=lambda env, spaces, device: MeanStdFilter()`.

    The statistics that a fragment is normalised with are those from before it, the same in all runners.
    """


def filter_of(observation_filter: str, connector: Any) -> bool:
    """Whether the settings ask for the filter.

    Raises:
        ConfigError: the connector gives something else.
    """
    if connector is None:
        return observation_filter == "MeanStdFilter"
    from ..errors import ConfigError

    made = connector(None, None, None)
    made = list(made) if isinstance(made, (list, tuple)) else [made]
    if not all(isinstance(piece, MeanStdFilter) for piece in made):
        raise ConfigError(f"env_to_module_connector gave {made}; MeanStdFilter is the only connector, and the spaces are flattened without one")
    return bool(made)
