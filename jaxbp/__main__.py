"""The command ``jaxbp``, which is also ``python -m jaxbp``."""

import sys


def main() -> int:
    """Run the command line, or say how to install what it needs."""
    try:
        from jaxbp import cli  # noqa: PLC0415 (importing jaxbp must not need the command's extra)
    except ModuleNotFoundError as error:
        print(f"jaxbp: the command needs {error.name}: pip install 'jaxbp[cli]'", file=sys.stderr)
        return 2
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
