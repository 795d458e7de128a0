"""`threatbus doctor`: looks whether everything that is configured can be reached and used.

=========  =============================================================================
check      what plugins give: a name and a function that says what works, or raises
network    questions that many checks ask: is it reachable, is this port free, who has it
checkup    runs all checks of a configuration, side by side, and gives what was found
=========  =============================================================================
"""

from threatbus.doctor.check import DEFAULT_TIMEOUT_SECS, Check
from threatbus.doctor.network import check_port, reach

__all__ = ["DEFAULT_TIMEOUT_SECS", "Check", "check_port", "reach"]
