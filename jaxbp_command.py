"""The command ``jaxbp`` from its first moment: Ctrl-C may meet the import of the package itself."""

import sys


def main() -> int:
    """Run the command line, or say how to install what it needs; the exit status."""
    try:
        try:
            from jaxbp import cli  # noqa: PLC0415 (to import JAX takes a second)
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
