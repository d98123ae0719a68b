"""Forms: what a text from outside may be made of, as a pattern for the check and in words for whoever wrote it.

in        nothing
out       patterns for `Field(pattern=...)`; IN_WORDS, from which settings.py says what is allowed
relies on pydantic's own reading of patterns, in which `$` is the end of the text and of nothing else
"""

SITE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
RUN_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
SERVER = r"^[A-Za-z0-9][A-Za-z0-9.-]{0,252}:[0-9]{1,5}$"
HOST = r"^[A-Za-z0-9][A-Za-z0-9.:-]{0,252}$"
LISTEN = r"^[0-9A-Za-z.:-]{1,253}$"
PARAMETERS = r"^[!-~]{1,200}$"
"""names of parameters, with * for any part; shown on the other side, so no control characters"""

IN_WORDS = {
    SITE_NAME: "a letter or digit, then up to 63 letters, digits and . _ -, such as clinic-a",
    RUN_ID: "a letter or digit, then up to 127 letters, digits and . _ -, such as study-7",
    SERVER: "HOST:PORT, such as motet.example.org:8000",
    HOST: "a machine's name or address without a port, such as motet.example.org or 192.0.2.7",
    LISTEN: "an address of this machine, such as 192.0.2.7, or 0.0.0.0 for all of them",
    PARAMETERS: "up to 200 characters without spaces, such as encoders.text.*",
}
"""pattern -> what it allows"""
