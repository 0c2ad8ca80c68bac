"""A rank that shows where it has the ready-made actors from, and the folder that it shares on its host."""

import actors
import forgectl

print(actors.__file__, forgectl.shared_folder())
