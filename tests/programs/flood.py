"""Writes so many megabytes to its log: `flood.py MB`, in lines that are numbered; then one last line."""

import sys

line = "x" * 1000
for number in range(int(sys.argv[1]) * 1000):
    print(f"{number:08d} {line}"[:999])
print("the last line", flush=True)
