"""`python -m pixelkit.ship`: the process that loads exports again. See loaders.py."""

from pixelkit.ship.loaders import main

main()
