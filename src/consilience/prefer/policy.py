"""The policies of a run, on disk and loaded: one at a time, adapters beside the weights that they began on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from consilience.errors import DataError
from consilience.models import ChatModel, EngineSettings, LocalSampler, load_model, open_model
from consilience.models.engine import VLLM
from consilience.models.load import make_room
from consilience.prefer.data import Preference
from consilience.prefer.likelihood import ReadReply, read_reply
from consilience.train import TrainSettings

ADAPTERS = "adapters"


@dataclass(frozen=True, slots=True)
class Policy:
    """A model on disk, and the folder of the run under which its replies are kept.

    One that was trained with adapters is also the model in `base` under those in `adapters`.
    """

    path: Path
    home: str
    base: Path | None = None
    adapters: Path | None = None


class Load:
    """Loads models one at a time: two may not fit together."""

    def __init__(self, tokenizer: Any, *, code: bool, engine: EngineSettings | None = None) -> None:
        """`engine` runs the policies that are to write replies."""
        self.tokenizer, self.code, self.engine = tokenizer, code, engine or EngineSettings()

    def sampler(self, policy: Policy, settings: TrainSettings) -> LocalSampler:
        """The policy, to write a round's replies. vLLM is given the adapters beside the model they began on."""
        if self.engine.engine != VLLM:
            return LocalSampler(self(policy, settings))
        make_room()
        path, adapters = _weights(policy, settings)
        how: dict[str, Any] = {"dtype": settings.dtype, "code": self.code, "tokenizer": self.tokenizer}
        return LocalSampler(open_model(path, self.engine, adapters=adapters, **how))

    def __call__(
        self, policy: Policy, settings: TrainSettings, *, learns: bool = False, place: bool = True
    ) -> ChatModel:
        """The policy in the number format that `settings` compute in; in float32 where its own weights are to learn.

        Adapters stay beside the weights of the model they began on: merged into bfloat16, most of what a round learnt
        would be rounded away.
        """
        make_room()
        path, adapters = _weights(policy, settings)
        dtype = "float32" if learns and not settings.lora else settings.dtype
        loaded = load_model(path, dtype=dtype, code=self.code, place=place, tokenizer=self.tokenizer)
        if adapters is None:
            return loaded
        from peft import PeftModel

        return replace(loaded, model=PeftModel.from_pretrained(loaded.model, adapters, is_trainable=learns))


def _weights(policy: Policy, settings: TrainSettings) -> tuple[Path, Path | None]:
    """Where the policy's weights are, and its adapters over them, which stay apart while there are any to train."""
    adapters = policy.adapters if settings.lora else None
    return policy.base if adapters and policy.base else policy.path, adapters


class Reader:
    """Replies as the policy reads them; its tokenizer and chat template are the same in all rounds."""

    def __init__(self, tokenizer: Any, preferences: Iterable[Preference]) -> None:
        self.tokenizer, self.preferences = tokenizer, {preference.id: preference for preference in preferences}
        self.kept = lru_cache(maxsize=1 << 16)(self._read)

    def __call__(self, id_: str, reply: str, ended: bool = True) -> ReadReply | None:
        """None where the chat template refuses the conversation."""
        return self.kept(id_, reply, ended)

    def _read(self, id_: str, reply: str, ended: bool) -> ReadReply | None:
        try:
            return read_reply(self.tokenizer, self.preferences[id_].prompt, reply, ended=ended)
        except DataError:
            return None
