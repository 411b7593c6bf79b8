"""`python tests/engine_parity.py vllm ...` by its older name.

usage: python tests/vllm_parity.py [--no-fast-forward] CASE.json[.gz] OUT.jsonl
       python tests/vllm_parity.py [--no-fast-forward] CASES_DIR OUT_DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.engine_parity import main

if __name__ == "__main__":
    sys.exit(main(["vllm", *sys.argv[1:]]))
