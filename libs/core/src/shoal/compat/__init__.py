"""Other frameworks' names for what Shoal offers: `shoal.compat.ray`."""
