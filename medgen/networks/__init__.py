"""Networks by name: a closed registry, so that a model folder can name one but never import one."""

from medgen.networks.registry import (
    NETWORKS,
    Network,
    build_network,
    check_network,
    check_network_form,
    check_plain,
    parameter_shapes,
    register,
)

__all__ = [
    "NETWORKS",
    "Network",
    "build_network",
    "check_network",
    "check_network_form",
    "check_plain",
    "parameter_shapes",
    "register",
]
