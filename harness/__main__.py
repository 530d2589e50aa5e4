"""``python -m harness`` is the same as ``litmus``."""

from harness.cli.app import main

if __name__ == "__main__":
    main()
