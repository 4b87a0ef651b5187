"""The unit tests are to be over in two seconds."""

import gc

# By default every 700 new objects make Python look for garbage: a tenth of the time that all these tests take.
gc.set_threshold(100_000, 50, 50)
