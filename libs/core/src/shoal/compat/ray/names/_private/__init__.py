"""Of Ray's insides, what packages use all the same."""
