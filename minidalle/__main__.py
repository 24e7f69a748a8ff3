"""`python -m minidalle` : la ligne de commande."""

from minidalle.cli import main

main()
