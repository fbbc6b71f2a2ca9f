"""The command ``jaxbp``, which is also ``python -m jaxbp``."""

import sys


def main() -> int:
    """Run the command line, or say how to install what it needs."""
    try:
        try:
            from jaxbp import cli  # noqa: PLC0415 (importing jaxbp must not need the extra)
        except ModuleNotFoundError as error:
            need = f"the command needs {error.name}: pip install 'jaxbp[cli]'"
            print(f"jaxbp: {need}", file=sys.stderr)
            return 2
        return cli.main()
    except KeyboardInterrupt:  # before the command began, which says this itself
        print("jaxbp: interrupted; nothing was saved", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
