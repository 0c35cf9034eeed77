"""What this process and its children find around them: `settle()`, first of all.

Containers run as users without a name or a home, in a C locale. Two things there are not as
everything below takes them to be, and are made so once, for this process and all that it starts.
"""

import os
import stat
import sys
import tempfile
from pathlib import Path


def settle() -> None:
    """See to UTF-8 and to a home; may begin the command again."""
    _speak_utf8()
    _have_a_home()


def _speak_utf8() -> None:
    """Begin again in Python's UTF-8 mode where names of files would be read in another encoding.

    Rows, logs and pages are UTF-8, and so are the names in them. A C locale with PYTHONUTF8=0, or
    an old one, has other bytes for them.
    """
    if sys.getfilesystemencoding() == "utf-8":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _have_a_home() -> None:
    """Give a user without a home one among the temporary files.

    Libraries keep caches below `~`; where that means nothing, they make a folder of that name in
    the working directory. A home that cannot be written is left alone: models may be read there.
    """
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = str(_own_folder(Path(tempfile.gettempdir())))


def _own_folder(among: Path) -> Path:
    """The same one for every process of this user, unless somebody else has made it."""
    folder = among / f"tempsamp-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        is_mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
        if is_mine and not found.st_mode & 0o077:
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="tempsamp-", dir=among))
