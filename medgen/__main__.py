"""``python -m medgen``: the command line."""

from medgen.cli import main

if __name__ == "__main__":
    main()
