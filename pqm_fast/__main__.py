"""`python -m pqm_fast`, which is `pqm-fast`; for `torchrun -m pqm_fast`."""

import sys

from pqm_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
