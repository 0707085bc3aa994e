"""What `python -m axolotl_clo.compare` runs."""

from axolotl_clo.compare.command import main

if __name__ == "__main__":
    main()
