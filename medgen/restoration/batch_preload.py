"""What the processes of a batch have loaded when they start: the slow imports, and nothing that starts threads."""

import medgen.restoration.batch_case
import medgen.restoration.write_restored  # noqa: F401
