"""The first process does something that it alone knows about, and the others do their share of it.

Drawing pictures and writing files is the business of the first process. Where a model is sharded, its forward pass and
the gathering of a weight take all processes. So the others follow: they do what the first one names, in its order,
until it has finished, whatever goes wrong in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from library.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")


class LostProcessError(UserError):
    """This process cannot go on, while the others wait for it inside a pass: nothing can be saved together any more."""

    exit_code = 3


class Leading:
    """Lets the first process lead.

    Args:
        group: Passes objects of the host, apart from what devices exchange.
        acts: {name: what all processes do when the first one asks for it}.

    Attributes:
        is_leading: This is the first process, and the others follow.
    """

    def __init__(self, group: ProcessGroup, acts: dict[str, Callable[..., Any]]) -> None:
        from torch import distributed

        self.group, self.acts = group, acts
        self.is_first = distributed.get_rank(group) == 0
        self.is_leading = False

    def lead(self, act: Callable[[], T]) -> T | None:
        """Do it on the first process, where the others do what `ask` says meanwhile; they return None.

        Raises:
            LostProcessError: The processes cannot go on together.
        """
        if not self.is_first:
            self._follow()
            return None
        assert not self.is_leading, "the others follow already"
        self.is_leading = True
        try:
            result = act()
        except LostProcessError:
            self.is_leading = False  # the others are not waiting for a word
            raise
        except BaseException:
            self.tell(None)
            self.is_leading = False
            raise
        self.tell(None)
        self.is_leading = False
        return result

    def ask(self, name: str, *args: Any) -> Any:
        """Do an act on all processes. Where nobody leads, all of them call this."""
        if self.is_leading:
            self.tell((name, args))
        return self.acts[name](*args)

    def tell(self, request: Any) -> None:
        """Send to those that follow."""
        self._pass_on([request])

    def _follow(self) -> None:
        while (request := self._pass_on([None])) is not None:
            name, args = request
            try:
                self.acts[name](*args)
            except LostProcessError:
                raise
            except UserError:
                pass  # the first process has it too, and decides what it means

    def _pass_on(self, box: list[Any]) -> Any:
        from torch import distributed

        distributed.broadcast_object_list(box, src=0, group=self.group)
        return box[0]
