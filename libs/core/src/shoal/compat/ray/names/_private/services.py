"""`ray._private.services`: Modin asks it."""

from shoal.util import get_node_ip_address

__all__ = ["get_node_ip_address"]
