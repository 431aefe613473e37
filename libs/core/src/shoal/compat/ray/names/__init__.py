"""Names of Ray that packages ask for and that have no place in Shoal itself: each does what it says. `ray.x.y` is `shoal.x.y` first, and else one of these."""
