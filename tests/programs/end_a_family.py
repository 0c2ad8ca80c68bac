"""`end_a_family.py RUN`: starts a family, ends it by an enclosure, and prints what happened."""

import asyncio
import json
import sys

from forgectl.agent.enclosure.enclosure import Enclosure
from tests.process.families import HOST, Family


def main() -> None:
    run = sys.argv[1]
    enclosure = Enclosure.create(run, HOST, "m", 0)
    family = Family(run, "tree", enclosure, size=7)
    report = asyncio.run(enclosure.end(30))
    said = {
        "cgroup": enclosure.cgroup is not None,
        "found": len(report.found),
        "killed": report.killed,
        "left": len(report.unkillable),
        "gone": family.gone,
    }
    family.server.kill()
    family.server.wait()
    print(json.dumps(said))


main()
