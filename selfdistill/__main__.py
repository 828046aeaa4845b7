"""``python -m selfdistill``, which ``accelerate launch -m selfdistill`` starts too."""

import sys

from selfdistill.cli import main

sys.exit(main())
