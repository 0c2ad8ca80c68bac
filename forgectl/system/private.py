"""Folders that belong to this user alone: nobody else could put anything there, or can replace anything.

A host receives this source in front of `relay/unpack.py`, before it has any other code of ours. So it imports nothing
of ours, and its syntax is one that an old Python understands.
"""

import grp
import os
import pwd
import stat

MOST_LINKS = 40
"""Symbolic links that one path may follow, as in the kernel."""
ACCESS_LIST = "system.posix_acl_access"


class NotPrivateError(PermissionError):
    """A folder that others made, may read or may change. `owner` is the uid that owns the offending file."""

    def __init__(self, message: str, owner: int) -> None:
        super().__init__(message)
        self.owner = owner


def private_folder(path: str) -> str:
    """Make a folder and its missing parents (0700), or check that it is ours alone; raises OSError."""
    missing = []
    folder = _absolute(path)
    while not os.path.lexists(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    check_private(path)
    for folder in reversed(missing):
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:  # another process was faster
            pass
    _check(path)
    return path


def check_private(path: str) -> None:
    """Raise NotPrivateError unless `path` is a folder of ours alone (0700), on a path that only we and root can change.

    A folder that does not exist yet is no error: nobody can have put anything there.
    """
    try:
        _check(path)
    except FileNotFoundError:
        pass


def _check(path: str) -> None:
    place, found = _walk(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        what = "it belongs to %s" % who(found.st_uid)
        if not stat.S_ISDIR(found.st_mode):
            what = "it is not a folder"
        elif found.st_uid == os.getuid():
            what = "others may use it (mode %04o)" % stat.S_IMODE(found.st_mode)
        raise NotPrivateError("%s must be a folder of yours with mode 0700: %s" % (place, what), found.st_uid)


def who(uid: int) -> str:
    """A user in words: `mallory (uid 1002)`."""
    try:
        return "%s (uid %d)" % (pwd.getpwuid(uid).pw_name, uid)
    except KeyError:
        return "uid %d" % uid


def _walk(path: str) -> "tuple[str, os.stat_result]":
    """The end of `path` after all links, and its status; checks each folder and link on the way."""
    here, found, links = "/", os.lstat("/"), 0
    system = (0, found.st_uid)  # in a user namespace without root, user nobody owns the system's folders
    left = _steps(_absolute(path))
    while left:
        _check_step(path, here, found, system)
        step = left.pop()
        place = os.path.dirname(here) if step == ".." else os.path.join(here, step)
        found = os.lstat(place)
        if not stat.S_ISLNK(found.st_mode):
            here = place
            continue
        if found.st_uid not in (os.getuid(), *system):
            message = "%s goes through %s, a link of %s" % (path, place, who(found.st_uid))
            raise NotPrivateError(message, found.st_uid)
        if not left:
            raise NotPrivateError("%s must be a folder of yours with mode 0700: it is a link" % place, found.st_uid)
        links += 1
        if links > MOST_LINKS:
            raise NotPrivateError("%s goes through more than %d links" % (path, MOST_LINKS), found.st_uid)
        target = os.readlink(place)
        here = "/" if target.startswith("/") else here
        found = os.lstat(here)
        left += _steps(target)
    return here, found


def _absolute(path: str) -> str:
    return path if path.startswith("/") else os.path.join(os.getcwd(), path)


def _steps(path: str) -> "list[str]":
    return [step for step in reversed(path.split("/")) if step not in ("", ".")]


def _check_step(path: str, place: str, found: os.stat_result, system: "tuple[int, int]") -> None:
    """Raise NotPrivateError if others can replace the content of a folder on the way."""
    if found.st_uid not in (os.getuid(), *system):
        message = "%s is not safe from others: %s belongs to %s" % (path, place, who(found.st_uid))
        raise NotPrivateError(message, found.st_uid)
    others = found.st_mode & 0o002 or (found.st_mode & 0o020 and not _owner_alone(place, found))
    if stat.S_ISDIR(found.st_mode) and others and not found.st_mode & stat.S_ISVTX:
        mode = stat.S_IMODE(found.st_mode)
        message = "%s is not safe from others: they may change %s (mode %04o)" % (path, place, mode)
        raise NotPrivateError(message, found.st_uid)


def _owner_alone(place: str, found: os.stat_result) -> bool:
    """Whether the group with write access is the owner's own; many systems give each user one."""
    try:
        group, owner = grp.getgrgid(found.st_gid), pwd.getpwuid(found.st_uid).pw_name
        return group.gr_name == owner and set(group.gr_mem) <= {owner} and ACCESS_LIST not in os.listxattr(place)
    except (KeyError, OSError):
        return False
