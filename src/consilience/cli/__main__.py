"""`python -m consilience.cli`, for `accelerate launch -m`."""

from consilience.cli import main

main()
