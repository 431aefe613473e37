"""How a run is carried out. Nothing here is public."""
