"""A launch with a regression: `python -m tests.sensitivity.launch FAULT JOB RESULT`."""

import sys

from bitgate.measure.launch import main
from tests.sensitivity.faults import FAULTS

if __name__ == "__main__":
    FAULTS[sys.argv[1]].install()
    sys.exit(main(sys.argv[2:]))
