"""Bytes that operators allocate and free, event by event: of fake tensors as of real ones."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class Event(NamedTuple):
    """A storage is made (`bytes` above 0) or freed (below 0)."""

    storage: int
    bytes: int


class Peak(NamedTuple):
    """Bytes alive when most were.

    total: of all storages.
    kept: of those that were alive at the mark too, such as what autograd keeps at the end of the forward pass.
    named: of those of the tensors that the question names, such as gradients.
    """

    total: int
    kept: int
    named: int


class Ledger(TorchDispatchMode):
    """Notes each storage that is made while it is on, until it is freed.

    Under `FakeTensorMode`, entered before, nothing is computed and no memory is needed, and what autograd keeps, what
    checkpointing drops and recomputes, and what is only needed within an operator's neighbours come out as they would.
    What an operator allocates inside itself is not seen.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        """
        Args:
            known: tensors that are there already and do not count, such as a model's parameters.
        """
        super().__init__()
        self.events: list[Event] = []
        self._names: dict[int, int] = {}
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._marks: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._note, out)
        return out

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._known or address in self._names:
            return
        name, size = len(self.events), storage.nbytes()
        self._names[address] = name
        self.events.append(Event(name, size))
        weakref.finalize(storage, self._freed, address, name, size).atexit = False

    def _freed(self, address: int, name: int, size: int) -> None:
        if self._names.get(address) == name:
            del self._names[address]
        self.events.append(Event(name, -size))

    def mark(self) -> None:
        """Remember this moment."""
        self._marks.append(len(self.events))

    def alive(self, until: int | None = None) -> dict[int, int]:
        """Bytes of the storages alive after so many events, or now, by name."""
        found: dict[int, int] = {}
        for storage, size in self.events[:until]:
            if size >= 0:
                found[storage] = size
            else:
                found.pop(storage, None)
        return found

    def kept(self) -> int:
        """Bytes alive at the last mark."""
        return sum(self.alive(self._marks[-1]).values())

    def peak(self, of: Iterable[torch.Tensor] = ()) -> Peak:
        """The moment at which most bytes were alive.

        Args:
            of: tensors to tell apart there.
        """
        total = highest = when = 0
        for i, (_, size) in enumerate(self.events):
            total += size
            if total > highest:
                highest, when = total, i + 1
        there = self.alive(when)
        named = {self._names[a] for t in of if (a := t.untyped_storage()._cdata) in self._names}
        at_mark = self.alive(self._marks[-1]) if self._marks else {}
        return Peak(
            total=sum(there.values()),
            kept=sum(size for name, size in there.items() if name in at_mark and name not in named),
            named=sum(size for name, size in there.items() if name in named),
        )
