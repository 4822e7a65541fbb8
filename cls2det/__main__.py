"""The ``cls2det`` command, and ``python -m cls2det``."""

import sys

try:
    from cls2det.cli import main
except ModuleNotFoundError as error:  # of an installation without extras: cls2det_ops alone
    sys.exit(f"cls2det: no module {error.name}. The command line needs the training layer: pip install 'cls2det[train]'")

if __name__ == "__main__":
    raise SystemExit(main())
