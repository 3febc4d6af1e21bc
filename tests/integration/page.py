"""The page in a browser: a tab of somebody who logs in, and what is read there."""

import re
import time
from contextlib import closing
from typing import Any

from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.notebook.director_calls import DirectorCalls
from openfl_audio.protocol.certificates import load_credentials
from openfl_audio.protocol.page import Invitation

# What happens in the federation is to be seen within this time.
SECONDS = 5.0


def invitation(processes: LocalFederation, user: str) -> Invitation:
    """Return what `openfl-audio page` gets for a user."""
    credentials = load_credentials(processes.certificates, user) if processes.certificates else None
    with closing(DirectorCalls(user, f"127.0.0.1:{processes.port}", credentials, timeout_s=60)) as calls:
        return calls.get_invitation()


class Tab:
    """A tab of its own context, so that two people may be logged in at a time."""

    def __init__(self, context: Any, processes: LocalFederation, **options: Any) -> None:
        self._processes = processes
        self._context = context.browser.new_context(**options)
        self._context.set_default_timeout(SECONDS * 1000)
        self._context.set_default_navigation_timeout(60_000)  # the first page after the director's start
        self.page = self._context.new_page()
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda message: self._note(message))

    def _note(self, message: Any) -> None:
        # Chromium writes a refusal of a request into the console; those are looked at by the tests themselves.
        if message.type == "error" and "the server responded with a status of 4" not in message.text:
            self.faults.append(message.text)

    def __enter__(self) -> "Tab":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self._context.close()
        if kind is None:
            assert self.faults == []

    def log_in(self, user: str, path: str = "/") -> None:
        invited = invitation(self._processes, user)
        self.page.goto(invited.login)
        self.page.get_by_role("heading", name="Federation").wait_for()
        self.go(path)

    def go(self, path: str) -> None:
        if path != "/":
            self.page.goto(self.address + path)

    @property
    def address(self) -> str:
        return re.sub(r"(https?://[^/]+).*", r"\1", self.page.url)

    def see(self, pattern: str, where: str = "main", seconds: float = SECONDS) -> None:
        """Wait until what is shown at the selector `where` has a pattern."""
        deadline = time.monotonic() + seconds
        while not any(re.search(pattern, text, re.S) for text in self.shown(where)):
            if time.monotonic() > deadline:
                raise AssertionError(f"no {pattern!r} in {where}: {self.shown(where)}")
            time.sleep(0.05)

    def shown(self, where: str) -> list[str]:
        """Return the texts that are shown at a selector."""
        return self.page.locator(where).all_inner_texts()

    def row(self, table: str, key: str) -> str:
        """Return the selector of the row of a table that begins with a key."""
        return f"table[aria-label='{table}'] tbody tr:has(td:first-child:text-is('{key}'))"

    def press(self, name: str, confirm: str) -> None:
        """Press a button, and the one of the question that follows."""
        self.page.get_by_role("button", name=name, exact=True).click()
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_role("button", name=confirm, exact=True).click()
        dialog.wait_for(state="detached")

    def violations(self) -> list[str]:
        """Return what axe-core finds that is serious or critical, by rule."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [
            f"{each['id']}: {[node['html'][:200] for node in each['nodes']]}"
            for each in found
            if each["impact"] in ("serious", "critical")
        ]
