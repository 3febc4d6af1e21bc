"""Another user for a worker: `python -m openfl_audio.envoy.run_as USER COMMAND...`, started as root, runs COMMAND.

It is a program of its own, as it has to come after bubblewrap, which needs root's rights, and before all that belongs
to an experiment.
"""

import os
import pwd
import sys
from typing import NoReturn

from openfl_audio.errors import SettingsError


def find_user(name: str) -> pwd.struct_passwd:
    """Return the user that workers run as. Raises SettingsError if this process cannot make them so."""
    if os.geteuid() != 0:
        raise SettingsError(f"run_as is '{name}': only an envoy that root starts can run workers as another user")
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise SettingsError(f"run_as is '{name}': this machine has no such user") from None
    if user.pw_uid == 0:
        raise SettingsError(f"run_as is '{name}', which is root: name a user that can read the recordings and no more")
    return user


def become(name: str) -> None:
    """Become a user, with the user's groups, for good."""
    user = pwd.getpwnam(name)
    os.initgroups(name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


def main() -> NoReturn:
    """Become the user, and then the command."""
    name, *command = sys.argv[1:]
    become(name)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
