"""A rank that leaves a file in the folders that the run shares on this host, and waits."""

import os
import time

import forgectl

for on_disk in (False, True):
    folder = forgectl.shared_folder(on_disk=on_disk)
    mine = folder / f"of-{os.environ['RANK']}"
    mine.write_text(str(folder))
print("written", flush=True)
time.sleep(3600)
