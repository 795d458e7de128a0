"""What tests of all kinds share; import as ``from helpers.waiting import eventually``."""
