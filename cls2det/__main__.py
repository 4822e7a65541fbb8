"""``python -m cls2det`` is the ``cls2det`` command."""

from cls2det.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
