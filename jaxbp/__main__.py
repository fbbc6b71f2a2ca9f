"""The command ``jaxbp`` as ``python -m jaxbp``."""

import sys

from jaxbp_command import main

if __name__ == "__main__":
    sys.exit(main())
