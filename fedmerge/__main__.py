"""`python -m fedmerge`: the command line."""

from fedmerge.cli import main

if __name__ == "__main__":
    main()
