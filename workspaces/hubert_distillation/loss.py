"""Distillation: a small student learns from the outputs of a pretrained teacher, which stays as it is."""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F

from openfl_audio.errors import SettingsError
from workspaces.hubert.data import Batch
from workspaces.hubert.loss import FrameCounts, Sums
from workspaces.hubert.model import Hubert
from workspaces.hubert_distillation.model import Student, load_teacher


@dataclass(frozen=True)
class Distillation:
    """The difference of what student and teacher make of the same clips, of which nothing is masked.

    With z the logits of the clusters, of student and teacher, T the `temperature`, y_l the teacher's output at layer l
    of `layers` and y'_l what the student predicts of it, at each frame:

        L = alpha * T^2 * KL(softmax(z_teacher / T) || softmax(z_student / T))
            + beta * mean_l(mean_d |y_l - y'_l| - log sigmoid(cos(y_l, y'_l)))

    The mean over frames, in nats. The first term is of Hinton et al., arXiv 1503.02531, and needs a teacher with the
    head of pretraining; the second is of Chang et al., arXiv 2110.01900, equation 1 with lambda 1.
    """

    teacher: str
    layers: tuple[int, ...]
    temperature: float = 2.0
    alpha: float = 0.5
    beta: float = 1.0

    def __call__(self, model: Hubert, batch: Batch, counts: FrameCounts) -> tuple[torch.Tensor, Sums]:
        teacher = load_teacher(self.teacher).to(batch.waveforms.device)
        if self.alpha > 0 and not teacher.has_head:
            raise SettingsError(f"the teacher '{self.teacher}' predicts no clusters: set distillation.alpha=0")
        real = batch.real
        with torch.no_grad():
            wise = teacher.extract_features(batch.waveforms, batch.lengths)[0]
        output = model(batch.waveforms, batch.lengths)[real]  # (frames, width)
        sums: Sums = {"frames": real.sum()}
        loss = output.new_zeros(())
        for predictor, layer in zip(cast(Student, model).predictors, self.layers, strict=True):
            predicted, target = predictor(output).float(), wise[layer - 1][real].float()
            cosine = F.cosine_similarity(predicted, target, dim=-1)
            distance = (predicted - target).abs().mean(-1)
            parts = {"l1": distance, "cosine_similarity": cosine, "cosine_loss": -F.logsigmoid(cosine)}
            loss = loss + self.beta * (parts["l1"] + parts["cosine_loss"]).sum() / len(self.layers)
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + part.detach().sum() / len(self.layers)
        if teacher.has_head:
            with torch.set_grad_enabled(self.alpha > 0 and torch.is_grad_enabled()):
                divergence, agreed = self._compare_clusters(
                    model.logits(output), teacher.logits(teacher.finish(wise)[real])
                )
            loss = loss + self.alpha * divergence
            sums |= {"divergence": divergence.detach(), "agreed": agreed}
        return loss / counts.frames, sums

    def _compare_clusters(self, logits: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return sums over frames: T^2 * KL, and how often the most likely cluster is the teacher's."""
        learned, known = (F.log_softmax(each / self.temperature, dim=-1) for each in (logits, wanted))
        divergence = F.kl_div(learned, known, reduction="sum", log_target=True)
        return self.temperature**2 * divergence, (logits.argmax(-1) == wanted.argmax(-1)).sum()

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Return `loss`, and l1 (lower is better) and cosine_similarity (higher) of the layers.

        If the teacher has a head, also divergence, T^2 * KL (lower), and agreement, the share of frames where both find
        the same cluster most likely.
        """
        frames = float(sums["frames"])
        means = {name: float(value) / frames for name, value in sums.items() if name != "frames"}
        loss = self.beta * (means["l1"] + means.pop("cosine_loss")) + self.alpha * means.get("divergence", 0.0)
        if "agreed" in means:
            means["agreement"] = means.pop("agreed")
        return {"loss": loss, **means}
