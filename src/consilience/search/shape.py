"""W, K and L of a search where nobody says otherwise; no torch, for doors that show them in their help."""

WIDTH = 4
SUCCESSORS = 4
CHUNK = 5  # tokens
