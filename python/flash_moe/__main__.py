"""`python -m flash_moe` is the command line."""

from .cli import main

raise SystemExit(main())
