"""``python -m medseg`` is the command ``medseg``."""

from medseg.cli.app import main

if __name__ == "__main__":
    main()
