"""Plans: what the user asked for (logical), the same with less work (optimizer), and operators that do it (physical)."""
