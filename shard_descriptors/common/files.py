"""Names and lists of recordings as they lie on people's disks, and reports for people to read."""

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

from openfl_audio.files import write_whole

# What looks like a recording, and is named when a corpus does not take it.
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff", ".wma")

# Folders that systems make: copies of what was deleted, and what macOS, Windows and network drives keep beside files.
SYSTEM_FOLDERS = {"__macosx", "$recycle.bin", "system volume information", "lost+found", "#recycle", "@eadir"}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file for people to read, whole or not at all, also after a power cut."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, text.encode(), durable=True)


def name_key(name: str) -> str:
    r"""Return the same for names that are one on some system: whatever their case, separators and Unicode form.

    >>> name_key("YES\\a.WAV") == name_key("yes/a.wav")
    True
    """
    folded = unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()
    return unicodedata.normalize("NFC", folded)


def printable(name: str) -> str:
    r"""Return a file name as text that can be sent: bytes that are no UTF-8 as escapes.

    >>> printable("caf\udce9")
    'caf\\xe9'
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def list_recordings(root: Path, folder: str, suffix: str, left_out: dict[str, str]) -> list[str]:
    """Return the recordings in one folder of a corpus: paths relative to `root`, sorted, with the suffix in any case.

    Hidden files are none: macOS writes a file ._NAME beside each NAME on disks of other systems. Whatever else looks
    like a recording and is not taken is put into `left_out` with the reason: another format, a name that is no UTF-8,
    and the second of two names that differ in case or Unicode form only.
    """
    found: dict[str, str] = {}
    with os.scandir(root / folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and not is_folder(entry))
    for name in names:
        file = f"{folder}/{name}"
        its_suffix = Path(name).suffix.casefold()
        if its_suffix not in AUDIO_SUFFIXES:
            continue
        if its_suffix != suffix:
            left_out[printable(file)] = f"is no {suffix} file"
        elif printable(file) != file:
            left_out[printable(file)] = "has a name that is not UTF-8"
        elif (first := found.setdefault(name_key(name), file)) != file:
            left_out[file] = f"has the same name as {first} but for case or Unicode form"
    return list(found.values())


def list_folders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones and those that the system made."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".") and entry.name.casefold() not in SYSTEM_FOLDERS and is_folder(entry)
        )


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Tell whether an entry is a folder, or a link to one; a link that goes round in a circle is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False
