"""`openfl-audio page`: an address that opens the page in the browser."""

from typing import ClassVar
from urllib.parse import urlsplit

from openfl_audio.address import is_loopback, is_this_machine, split_address
from openfl_audio.cli.connected import Connected


class Page(Connected):
    """Print an address that opens the page in the browser.

    The director serves the page. The address has a token that is good for one login, and what the page then shows and
    does is what this user's certificate may.
    """

    example: ClassVar[str] = "openfl-audio page --director fl.example.org:50051 --user ada"

    def run(self) -> None:
        with self.calls() as calls:
            invitation = calls.get_invitation()
        print(invitation.login)
        print(f"It logs {self.user or 'anonymous'} in once, within {invitation.seconds / 60:.0f} minutes.")
        page, director = urlsplit(invitation.address), split_address(self.director)[0]
        if is_loopback(page.hostname or "") and not is_this_machine(director):
            print(
                f"The page is served on {director} itself only. From here: "
                f"ssh -L {page.port}:127.0.0.1:{page.port} {director}"
            )
