"""A `consilience search` of a file of prompts: what is searched by which models, and what of it decides the replies."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consilience.errors import ConfigError
from consilience.models import EngineSettings
from consilience.models.endpoint import EndpointSettings
from consilience.models.engine import VLLM
from consilience.pipelines.places import Places
from consilience.run import fingerprint
from consilience.search import SearchSettings
from consilience.search.corners import CORNERS

PUBLISHED = ("cbs", "best-of-n")  # what the published code does


@dataclass(frozen=True, kw_only=True)
class SearchJob:
    """`guide` is (tuned, untuned). Raises `ConfigError` for what does not go together."""

    model: str
    guide: tuple[str, str] | None
    prompts: Path
    out: Path
    settings: SearchSettings
    method: str = "cbs"
    seed: int = 0
    batch: int = 8
    limit: int | None = None
    dtype: str = "float32"
    raw: bool = False
    trust_remote_code: bool = False
    endpoint: EndpointSettings | None = None  # the large model is behind it
    tokenizer: str | None = None  # the large model's, where it is behind an endpoint
    continue_by: str = "auto"
    engine: EngineSettings = field(default_factory=EngineSettings)  # of the large model; the pair's is transformers

    def __post_init__(self) -> None:
        if self.endpoint and self.on_vllm:
            raise ConfigError("--engine is of a model on this machine, and --endpoint of one on a server. Give one.")
        black_box = "an endpoint" if self.endpoint else "--engine vllm" if self.on_vllm else ""
        if black_box and self.method not in CORNERS:
            methods = ", ".join(CORNERS)
            raise ConfigError(
                f"--method {self.method} needs the large model itself. With {black_box} there are: {methods}."
            )
        if black_box and self.settings.mode == "published":
            raise ConfigError(f"--mode published draws its tokens itself. Leave it out, or search without {black_box}.")
        if self.settings.mode == "published" and self.method not in PUBLISHED:
            raise ConfigError(f"--mode published is of {' and '.join(PUBLISHED)}, not of {self.method}. Leave it out.")

    @property
    def on_vllm(self) -> bool:
        """Whether vLLM runs the large model."""
        return self.engine.engine == VLLM

    def outcome(self) -> dict[str, Any]:
        """What decides the replies, as it is kept beside them."""
        names = dict(zip(("tuned", "untuned"), self.guide)) if self.guide else {}
        names |= {"tokenizer": self.tokenizer} if self.tokenizer else {}
        names |= {} if self.endpoint else {"large": self.model}
        places = Places(Path(), Path())
        models = {name: fingerprint(places.model(path)) for name, path in names.items()}
        if self.endpoint:
            models |= {"large": f"{self.endpoint.model} at {self.endpoint.url}", "continue_by": self.continue_by}
        models |= self.engine.decides()
        settings = self.settings.model_dump(mode="json")
        return {"method": self.method, "seed": self.seed, "raw": self.raw, "dtype": self.dtype} | settings | models
