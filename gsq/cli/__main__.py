"""``python -m gsq.cli``: the command line, also where no script was installed."""

from gsq.cli.main import main

if __name__ == "__main__":
    main()
