"""Learning vectors for a new word, and nothing else: what `*train_textual_inversion.py` scripts do.

The vectors are rows behind the text encoders' tables of tokens. They are the only parameters of the optimizer, so the
model stays bit for bit as it is. Gradients go back through the denoiser and the encoders, which are frozen.

Source: Gal et al. 2022, arXiv:2208.01618.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.data.problems import counted
from library.errors import DatasetError, OptionError
from library.records import ONLY_VECTORS
from library.training.base_format import check_base_format
from library.training.forecast.ladder import with_values
from library.training.textual_inversion.templates import sentences
from library.training.textual_inversion.word_checks import (
    check_captions,
    check_new,
    check_reach,
    first_ids,
    fitting_vectors,
    tell_captions,
)
from library.training.trainer import Trainer

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Parameter

    from library.training.saving.run_metadata import RunMetadata

ARCHITECTURE = "textual-inversion"  # behind that of the base


class InversionTrainer(Trainer):
    """Learns the word of `--token_string`, and saves its vectors."""

    vectors: dict[str, Parameter]
    run_metadata: RunMetadata

    def __init__(self, options: Any) -> None:
        """Files are called after the word where nothing else is said."""
        name = options.saving.output_name or options.inversion.token_string
        super().__init__(with_values(options, {"output_name": name}))

    @property
    def word(self) -> str:
        """That is learned."""
        return str(self.options.inversion.token_string)

    # Before weights are read

    def check_options(self) -> None:
        """Also: a denoiser in fewer bits can be had."""
        super().check_options()
        check_base_format(self.options.memory)

    def plan_run(self) -> None:
        """Also: captions have the word."""
        super().plan_run()
        if not self.options.inversion.has_template:
            check_captions(self.plan, self.word)

    def trained_encoders(self) -> tuple[str, ...]:
        """Those that learn the word."""
        return self.family.network_encoders(self.options.inversion.encoder_arguments)

    def check_trainables(self) -> None:
        """The encoders are there and do not know the word, and the vectors have something to begin with."""
        chosen, names = self.options.inversion, self.trained_encoders()
        for name in names:
            if not self.family.has_encoder(self.files, name):
                advice = self.family.advice_for_missing(name)
                raise OptionError(f"--token_string: there is no {name} to learn the word. {advice}.")
        if any(subset.preserves_output for spec in self.plan.specs for subset in spec.subsets):
            raise DatasetError(
                f"{self.plan.source}: diff_output_preservation keeps a model that changes as it was, and here the "
                "model itself does not change. Leave it out."
            )
        tokenizers = self.family.load_tokenizers(self.files, names)
        check_new(self.word, tokenizers)
        if not chosen.has_template:
            tell_captions(self.plan, self.word)
            check_reach(
                self.plan, self.word, tokenizers, number=chosen.num_vectors_per_token, cuts=self.family.caption_cuts
            )
        self._first_ids: Mapping[str, Sequence[int]] = {}
        self._first_vectors: Mapping[str, Tensor] = {}
        if chosen.weights is not None:
            self._first_vectors = fitting_vectors(chosen.weights, self._tables(), chosen.num_vectors_per_token)
        elif chosen.init_word:
            self._first_ids = first_ids(chosen.init_word, tokenizers, chosen.num_vectors_per_token)

    def _tables(self) -> dict[str, Any]:
        """{encoder: its embedding of tokens, without numbers}"""
        import torch

        from library.models.added_words import token_table

        outlines = {
            name: self.family.encoder_outline(self.files, name, torch.float32) for name in self.trained_encoders()
        }
        return {name: token_table(outline) for name, outline in outlines.items()}

    def caption_replacements(self) -> Mapping[str, Sequence[str]]:
        """With a template, its sentences."""
        chosen = self.options.inversion
        return {"": sentences(self.word, is_style=chosen.use_style_template)} if chosen.has_template else {}

    def planned_trainables(self) -> list[str]:
        """The word."""
        chosen, rate = self.options.inversion, self.options.optimizer.learning_rate
        drawn = self.caption_replacements().get("", ())
        number = counted(chosen.num_vectors_per_token, "vector")
        is_mixed = any(record.is_reg for record in self.plan.training_records)
        where = ", but for regularisation" if is_mixed else ""
        return [
            f"the word {self.word}, of {number} in each text encoder that learns it",
            *([f"captions are not used{where}: one of {len(drawn)} sentences is drawn each time"] if drawn else []),
            *self.rates_in_words(dict.fromkeys(self.trained_encoders(), rate)),
        ]

    # Building

    def build_trainables(self) -> None:
        """Let tokenizers and encoders know the word."""
        from torch.nn import Parameter

        from library.models.added_words import add_words

        self.run_metadata = self.describe_run()
        encoders = {name: self.text.encoders[name] for name in self.trained_encoders()}
        self.vectors = {
            name: Parameter(self._first_of(name).to(self.device, self._vector_dtype(), copy=True)) for name in encoders
        }
        add_words(self.text.tokenizers, encoders, self.word, self.vectors)
        if self.options.training.recomputes:
            self.checkpoint_encoders()

    def _first_of(self, name: str) -> Tensor:
        """What the vectors of an encoder begin as. Shape [n, D]."""
        from library.models.added_words import token_table
        from library.training.textual_inversion.first_vectors import drawn_rows, rows_of

        if name in self._first_vectors:
            return self._first_vectors[name]
        table = token_table(self.text.encoders[name]).weight
        if name in self._first_ids:
            return rows_of(table, self._first_ids[name])
        return drawn_rows(table, self.options.inversion.num_vectors_per_token, seed=self.seed, encoder=name)

    def _vector_dtype(self) -> torch.dtype:
        """Float32, unless --full_fp16 or --full_bf16 asks to train in half precision."""
        import torch

        precision = self.options.precision
        return self.weight_dtype if precision.full_fp16 or precision.full_bf16 else torch.float32

    def describe_run(self, network_args: Mapping[str, str] | None = None) -> RunMetadata:
        """The word calls up what was trained, unless --metadata_trigger_phrase says something else."""
        described = super().describe_run(network_args)
        described.options["metadata_trigger_phrase"] = described.options.get("metadata_trigger_phrase") or self.word
        return described

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One for each encoder."""
        rate = self.options.optimizer.learning_rate
        return [{"params": [vectors], "lr": rate} for vectors in self.vectors.values()]

    def optimizer_group_names(self) -> list[str]:
        """Names of the encoders."""
        return list(self.vectors)

    def describe_trainables(self) -> list[str]:
        """How many numbers train."""
        listed = ", ".join(f"{name} {' x '.join(map(str, rows.shape))}" for name, rows in self.vectors.items())
        return [
            f"the word {self.word}: {sum(rows.numel() for rows in self.vectors.values()):,} numbers train ({listed})"
        ]

    # Training

    def set_training(self, is_training: bool) -> None:
        """Nothing here drops values, but recomputed layers ask for it."""
        self.set_models_training(is_training)

    def unchanged_model(self) -> AbstractContextManager[None]:
        """`check_trainables` has refused data that asks for it."""
        raise NotImplementedError

    def trained_state(self) -> dict[str, Tensor]:
        """The vectors."""
        return {name: vectors.detach() for name, vectors in self.vectors.items()}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Put the numbers back."""
        for name, vectors in self.vectors.items():
            vectors.data.copy_(state[name])

    # Saving

    def session(self) -> dict[str, Any]:
        """Identity and start of the run, which its files tell."""
        return self.run_metadata.session

    def has_header(self) -> bool:
        """Pickles have none."""
        return bool(self.options.layout == "safetensors")

    def write_model(self, path: Path, *, step: int, epoch: int) -> list[Path]:
        """Write the vectors."""
        from library.checkpoint.embeddings import write_embedding
        from library.training.saving.saver import is_average

        dtype, is_only = self.save_dtype(), len(self.family.encoder_names) == 1
        state = {
            ONLY_VECTORS if is_only else name: rows.detach().to("cpu", dtype or rows.dtype).contiguous()
            for name, rows in self.vectors.items()
        }
        architecture = f"{self.family.architecture(self.files)}/{ARCHITECTURE}"
        metadata = self.run_metadata.for_file(
            state, step=step, epoch=epoch, architecture=architecture, is_average=is_average(path)
        )
        write_embedding(path, state, word=self.word, step=step, metadata=metadata)
        return [path]
