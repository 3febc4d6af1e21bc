"""`openfl-audio privacy`: what a site has spent of its budget, beside the envoy that runs."""

from typing import ClassVar

from openfl_audio.cli.at_site import AtSite
from openfl_audio.cli.connected import print_tables, table_of
from openfl_audio.errors import SettingsError


class Privacy(AtSite):
    """Show what has been spent of a site's budget of privacy, what is left, and by which experiments.

    Experiments together cost less than the sum of each alone. Envoys of one corpus share a ledger, so that all of them
    show the same.
    """

    example: ClassVar[str] = "openfl-audio privacy -n site_b -c envoys/superb.yaml"

    def run(self) -> None:
        from openfl_audio.envoy.budget import SiteBudget
        from openfl_audio.envoy.settings import folder_of

        settings = self.read_settings()
        if settings.privacy is None:
            raise SettingsError(f"{self.config} has no params.privacy: envoy '{self.name}' has no budget")
        ledger = SiteBudget(settings.privacy, self.name, folder_of(settings, self.name)).ledger
        told = ledger.describe()
        rows = [
            ["corpus", told["corpus"]],
            ["ledger", str(ledger.path)],
            ["protected unit", told["unit"]],
            ["spent", f"epsilon {told['epsilon']:.4g}"],
            ["left", f"epsilon {told['left']:.4g} of {told['budget']:g}"],
            ["delta", f"{told['delta']:g}"],
            ["of data that differ by", told["adjacency"]],
        ]
        spent = [[name, f"{epsilon:.4g}"] for name, epsilon in ledger.spent_by_experiment().items()]
        print_tables(
            table_of(f"Budget of envoy '{self.name}'", ("", ""), rows),
            table_of("Each experiment by itself", ("experiment", "epsilon"), spent),
        )
