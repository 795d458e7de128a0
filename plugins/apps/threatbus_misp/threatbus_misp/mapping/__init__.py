"""Pure functions between MISP's JSON and STIX 2.1; no I/O."""
