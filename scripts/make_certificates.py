"""Makes the certificates of a federation, offline: an authority once, then director, envoys and notebook users.

    python scripts/make_certificates.py --out certificates --director fl.example.org --envoy site-a site-b --user ada
    python scripts/make_certificates.py --out certificates --envoy site-c        # later: one more envoy

Each machine gets ca.crt and its own NAME.crt and NAME.key. ca.key signs new members: it stays where it was made.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs before anything is installed, too

from openfl_audio.errors import CertificateError
from openfl_audio.protocol.certificates import AUTHORITY, DIRECTOR, LEAF_DAYS, LOCAL_HOSTS, names_of, write_certificates


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the files go")
    parser.add_argument(
        "--director",
        nargs="*",
        action="extend",
        metavar="NAME_OR_IP",
        help="sign the director for these host names and IP addresses (localhost is always among them)",
    )
    parser.add_argument("--envoy", nargs="+", action="extend", default=[], metavar="NAME", help="sign these envoys")
    parser.add_argument("--user", nargs="+", action="extend", default=[], metavar="NAME", help="sign these notebooks")
    parser.add_argument("--days", type=int, default=LEAF_DAYS, metavar="N", help="validity (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace existing certificates (never the authority)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        written = write_certificates(
            options.out,
            director_hosts=options.director,
            envoys=options.envoy,
            users=options.user,
            days=options.days,
            force=options.force,
        )
    except CertificateError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in written:
        print(f"wrote {path}")
    if options.director is not None:
        names = names_of((options.out / f"{DIRECTOR}.crt").read_bytes())
        print(f"{DIRECTOR}.crt is for {', '.join(names)}: envoys and notebooks reach the director by one of these.")
        if set(names) <= set(LOCAL_HOSTS):
            print("For a director on another machine give its names: --director fl.example.org 192.0.2.7 --force")
    print(f"Copy {AUTHORITY}.crt and its own .crt and .key to each machine; {AUTHORITY}.key stays here.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
