"""Record names: how the parts of a message are called, and how long its words may be.

in        nothing
out       names that wire.py and the carrier, which loads no torch, agree on
relies on nothing
"""

HEADER, ARRAYS, REFUSAL = "header", "arrays", "refusal"
MAX_HEADER_CHARACTERS = 1_000_000
REFUSAL_CODE = r"[a-z][a-z-]{0,39}"
