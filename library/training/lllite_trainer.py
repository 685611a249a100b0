"""Training ControlNet-LLLite: a network beside the denoiser that is told a conditioning picture of each picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.errors import OptionError
from library.log import get_logger
from library.records import Size, View
from library.training.network_tensors import network_state
from library.training.network_trainer import NetworkTrainer
from library.training.saving.saver import is_average

if TYPE_CHECKING:
    from torch import Tensor

    from library.records import Batch
    from library.training.sampling.prompts import SamplePrompt
    from library.training.saving.run_metadata import RunMetadata
    from networks.control_net_lllite_targets import Widths

logger = get_logger(__name__)


class LlliteTrainer(NetworkTrainer):
    """Trains the modules of networks.control_net_lllite, which are saved and continued as any network is."""

    network_kind = "control-net-lllite"

    def check_options(self) -> None:
        """Also: the conditioning pictures of sample prompts are there."""
        super().check_options()
        without = 0
        for prompt in self.prompts:
            if prompt.condition is None:
                without += 1
            elif not Path(prompt.condition).is_file():
                raise OptionError(
                    f"--sample_prompts: prompt {prompt.index + 1}: --cn {prompt.condition} is no file. Check the path."
                )
        if without:
            logger.warning(
                "--sample_prompts: %d of %d prompts have no --cn with a conditioning picture, so the model draws them "
                "as it does without the network.",
                without,
                len(self.prompts),
            )

    def planned_trainables(self) -> list[str]:
        """Its widths and rate."""
        condition, inner = self._widths()
        rates = {self.family.denoiser_name: self.options.optimizer.learning_rate}
        return [f"ControlNet-LLLite, {inner} wide, embedding of {condition}", *self.rates_in_words(rates)]

    def described_values(self) -> dict[str, Any]:
        """Also: the modules' width where it is the usual one."""
        return {**super().described_values(), "network_dim": self._widths().inner}

    def describe_run(self, network_args: Mapping[str, str] | None = None) -> RunMetadata:
        """Also: the width of the picture's embedding where it is the usual one."""
        return super().describe_run({**(network_args or {}), "cond_emb_dim": str(self._widths().condition)})

    def _widths(self) -> Widths:
        from networks.control_net_lllite_targets import DEFAULT_COND_EMB_DIM, DEFAULT_MLP_DIM, Widths

        options = self.options.network
        return Widths(options.cond_emb_dim or DEFAULT_COND_EMB_DIM, options.network_dim or DEFAULT_MLP_DIM)

    def tell(self, batch: Batch) -> None:
        """The conditioning pictures of the batch."""
        assert batch.conditioning_images is not None
        self.network.set_condition(batch.conditioning_images)

    def tell_prompt(self, prompt: SamplePrompt) -> None:
        """Its conditioning picture, brought to its size."""
        self.network.set_condition(None if prompt.condition is None else self._condition(prompt, prompt.condition))

    def _condition(self, prompt: SamplePrompt, path: str) -> Tensor:
        """Shape [1, 3, H, W], in -1..1."""
        from library.data.pixels.images import load_image, prepare_image

        whole = View.whole(Size(prompt.width, prompt.height)).crop
        return prepare_image(load_image(Path(path)), whole, "lanczos", flip=False)[None].to(self.device)

    def write_model(self, path: Path, *, step: int, epoch: int) -> list[Path]:
        """Write the modules with their metadata. The hashes of LoRA files have no place in it."""
        from library.training.saving.run_metadata import write_network

        state = network_state(self.network, self.save_dtype())
        architecture = f"{self.family.architecture(self.files)}/{self.network_kind}"
        metadata = self.run_metadata.for_file(
            state, step=step, epoch=epoch, architecture=architecture, is_average=is_average(path)
        )
        write_network(path, state, {key: value for key, value in metadata.items() if not key.startswith("sshs_")})
        return [path]
