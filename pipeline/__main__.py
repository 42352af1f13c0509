"""`python -m pipeline`, and the command that is installed."""

import sys

try:
    from pipeline.cli import main
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    main()
