"""Drawing words so that the captions of a picture depend on the seed and its name only.

transformers draws for a whole batch from one random state: the batch size, the order and what was captioned before
change every caption. Here it is left to take the likeliest token, and what it is shown as the likeliest was drawn for
each row from a generator of its own. The draw adds noise to the logarithms of the chances (Gumbel-max), so that a
rounding difference in them, which other batch sizes bring, hardly ever changes what is drawn.

Sources: nucleus sampling, Holtzman et al. 2019, arXiv:1904.09751; Gumbel-max, Maddison et al. 2014, arXiv:1411.0030.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from library.rng import torch_stream

if TYPE_CHECKING:
    from torch import Tensor

_STREAM = "caption"
_MOSTLY_ENOUGH = 1024  # tokens that are sorted at first: all of a vocabulary takes many times as long


def nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Scores of the likeliest tokens that together have at least the chance `top_p`; all others become -inf.

    Args:
        scores: Logits. Shape [B, V].
        top_p: Above 0, at most 1. The likeliest token always stays.
    """
    if top_p >= 1:
        return scores
    chances = scores.softmax(dim=-1)
    is_in, reaches = _likeliest(chances, top_p, min(_MOSTLY_ENOUGH, scores.shape[-1]))
    if not bool(reaches.all()):
        rest = ~reaches
        is_in[rest] = _likeliest(chances[rest], top_p, scores.shape[-1])[0]
    return scores.masked_fill(~is_in, float("-inf"))


def gumbel(uniform: Tensor) -> Tensor:
    """Noise whose argmax over log-chances draws by these chances.

    Args:
        uniform: Numbers drawn from 0 to 1. A 0, which comes up once in 2^24, is as the least number above it.
    """
    import torch

    return -torch.log(-torch.log(uniform.clamp(min=torch.finfo(uniform.dtype).tiny)))


def _likeliest(chances: Tensor, top_p: float, number: int) -> tuple[Tensor, Tensor]:
    """Which tokens of the `number` likeliest are in the nucleus, and in which rows these are all of it.

    Args:
        chances: Shape [B, V].

    Returns:
        Shapes [B, V] and [B].
    """
    import torch

    ordered, order = chances.topk(number, dim=-1)
    sums = ordered.cumsum(dim=-1)
    is_in = sums - ordered < top_p  # [B, number], by the sum of those before a token
    return torch.zeros_like(chances, dtype=torch.bool).scatter(-1, order, is_in), sums[:, -1] >= top_p


class KeyedDraws:
    """A logits processor of transformers: leaves of each row one token, the drawn one.

    It has to come last of all processors, and with a search that takes the likeliest token.

    Args:
        names: Of the pictures of the batch, in order.
        seed: Of the run.
        top_p: See `nucleus`.
        temperature: The logits are divided by it.
    """

    def __init__(self, names: Sequence[str], *, seed: int, top_p: float, temperature: float) -> None:
        self._generators = [torch_stream(seed, _STREAM, name) for name in names]
        self._top_p, self._temperature = top_p, temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Draw the next token of every row.

        Args:
            input_ids: The tokens so far; they do not matter. Shape [B, L].
            scores: Logits. Shape [B, V].

        Returns:
            0 for the drawn token and -inf for all others. Shape [B, V].
        """
        import torch

        kept = nucleus(scores.float() / self._temperature, self._top_p)
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=draw) for draw in self._generators])
        drawn = (kept + gumbel(uniform).to(kept.device)).argmax(dim=-1, keepdim=True)  # [B, 1]
        return torch.full_like(scores, float("-inf")).scatter(-1, drawn, 0.0)
