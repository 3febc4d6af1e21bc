"""`openfl-audio personal`: a site's own model, beside the envoy that runs."""

from pathlib import Path
from typing import ClassVar

from openfl_audio.cli.at_site import AtSite
from openfl_audio.cli.options import argument, option


class Personal(AtSite):
    """Write this site's own model of an experiment.

    Where parts of a model stay at each site, it is a copy of the exported model with the tensors that stayed here. The
    last model of the experiment goes with them: they are those of the last round that this envoy trained in.
    """

    example: ClassVar[str] = "openfl-audio personal my-experiment -n site_b -c site.yaml --model model --out ours"

    experiment: str = argument("name of the experiment")
    model: Path = option("folder of the exported model", metavar="DIR")
    out: Path = option("folder that is written", metavar="DIR")

    def run(self) -> None:
        from openfl_audio.envoy.personal import write_personal
        from openfl_audio.envoy.settings import folder_of

        folder = folder_of(self.read_settings(), self.name)
        names = write_personal(self.model, folder, self.experiment, self.out)
        print(f"{self.out} has the model with {len(names)} tensors of this site: {', '.join(names)}")
