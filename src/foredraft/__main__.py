"""`python -m foredraft` is the `foredraft` command."""

from foredraft.cli.app import main

if __name__ == "__main__":
    main()
