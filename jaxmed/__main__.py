"""`python -m jaxmed` is the `jaxmed` command."""

import sys

from jaxmed.commands import cli

if __name__ == '__main__':
  sys.exit(cli.main())
