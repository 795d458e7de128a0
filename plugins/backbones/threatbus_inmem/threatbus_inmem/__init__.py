"""The in-memory backbone of Threat Bus: one process, no broker."""
