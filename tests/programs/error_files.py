"""`error_files.py KIND`: leaves something unusual where its error file should be, then exits with 4."""

import json
import os
import sys

path = os.environ["TORCHELASTIC_ERROR_FILE"]
kind = sys.argv[1]
genuine = {"message": {"message": "planted", "extraInfo": {"py_callstack": "planted", "timestamp": "1"}}}
if kind == "huge":
    with open(path, "w") as file:
        json.dump({"message": {"message": "x" * (4 << 20)}}, file)
elif kind == "text":
    with open(path, "wb") as file:
        file.write(b"\xff\xfe not json {")
elif kind == "deep":
    with open(path, "w") as file:
        file.write("[" * 500_000)
elif kind == "shapes":
    with open(path, "w") as file:
        json.dump({"message": {"message": ["a", {"b": 1}], "extraInfo": "text"}}, file)
elif kind == "number":
    with open(path, "w") as file:
        file.write("NaN")
elif kind == "link":
    with open("elsewhere.json", "w") as file:
        json.dump(genuine, file)
    os.symlink(os.path.abspath("elsewhere.json"), path)
elif kind == "fifo":
    os.mkfifo(path)
elif kind == "folder":
    os.mkdir(path)
elif kind == "device":
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero, which has no end
elif kind == "future":
    with open(path, "w") as file:
        json.dump(genuine, file)
    os.utime(path, (4e9, 4e9))
elif kind == "past":
    with open(path, "w") as file:
        json.dump(genuine, file)
    os.utime(path, (0, 0))
elif kind == "escapes":
    with open(path, "w") as file:
        json.dump({"message": {"message": "\x1b]52;c;x\x07evil\x1b[2J", "extraInfo": {}}}, file)
else:
    sys.exit(f"no such kind: {kind}")
sys.exit(4)
