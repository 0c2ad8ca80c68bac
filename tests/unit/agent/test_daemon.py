"""Where an agent puts what others could foresee."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from forgectl.agent.daemon import messages_folder
from forgectl.protocol.supervision import Membership

MEMBER = Membership("b", "", "secret", {}, ())


def test_a_foreseen_folder_of_another_user_keeps_no_host_from_messages(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can make a folder of another user")
    wanted = messages_folder(tmp_path, None)
    assert not wanted.exists(), "nothing is made where there are no messages"
    wanted.mkdir(mode=0o700)
    try:
        os.chown(wanted, 12345, 12345)
        other = messages_folder(tmp_path, MEMBER)
        try:
            assert other != wanted and other.parent == wanted.parent
            assert (other.stat().st_uid, other.stat().st_mode & 0o777) == (0, 0o700)
        finally:
            other.rmdir()
    finally:
        shutil.rmtree(wanted)
    made = messages_folder(tmp_path, MEMBER)
    assert made == wanted and made.is_dir()
    made.rmdir()
