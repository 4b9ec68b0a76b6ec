"""`python cli.py search ...` in a checkout is `hwnas search ...`."""

from hwnas.cli import main

if __name__ == "__main__":
    main()
