"""`python -m pixelkit`."""

from pixelkit.cli import main

main()
