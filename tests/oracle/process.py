"""`integrity` with a part taken away, named by ORACLE_WITHOUT: what the oracle must notice."""

from __future__ import annotations

import os
import sys

# Loaded before anything is taken away from them: the program itself loads a store when it opens it.
import integrity.stores.mongo
import integrity.stores.postgres
import integrity.stores.topic
from integrity.cli import main
from tests.property.faults import take_away

assert integrity.stores

if __name__ == "__main__":
    take_away(os.environ["ORACLE_WITHOUT"])
    sys.exit(main())
