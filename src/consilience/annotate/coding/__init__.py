"""Gold: the probability sample that people code, its store, its spreadsheets, and how far the coders agree."""
