"""Names that programs written for RLlib look for here."""
