"""The methods that can be asked for by name, one signature: models and settings in, searches to add prompts to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from consilience.errors import ConfigError
from consilience.search import corners
from consilience.search.aligntree import AlignTree
from consilience.search.beam import BeamSearch
from consilience.search.chunks import Search, Searches
from consilience.search.forward import TreeModel
from consilience.search.guide import Guide
from consilience.search.sampling import LargeModel
from consilience.search.settings import SearchSettings

STEP = 16  # tokens between two chances to join a batch, where the chunk's length does not matter


@dataclass(frozen=True)
class Models:
    """The frozen large model, and the pair where there is one; `raw` prompts are continued as plain text."""

    large: TreeModel
    tuned: TreeModel | None = None
    untuned: TreeModel | None = None
    raw: bool = False

    def pair(self) -> tuple[TreeModel, TreeModel]:
        """Raises `ConfigError` where there is none."""
        if self.tuned is None or self.untuned is None:
            raise ConfigError("this method needs a small pair. Give --guide TUNED:UNTUNED; sample and beam need none.")
        return self.tuned, self.untuned

    def guide(self, settings: SearchSettings) -> Guide:
        """The pair as a scorer of what the large model samples."""
        tuned, untuned = self.pair()
        return Guide(
            tuned,
            untuned,
            tokenizer=self.large.chat_model.tokenizer,
            raw=self.raw,
            published=settings.mode == "published",
            temperature=settings.guide_temperature,
            per_token=settings.per_token,
        )


Method = Callable[[Models, SearchSettings], tuple[Searches, SearchSettings]]


def chunk_level_beam_search(models: Models, settings: SearchSettings) -> tuple[Search, SearchSettings]:
    """W hypotheses, K continuations of each, L tokens at a time (arXiv 2405.19262)."""
    return Search(LargeModel(models.large, raw=models.raw), models.guide(settings)), corners.cbs(settings)


def best_of_n(models: Models, settings: SearchSettings) -> tuple[Search, SearchSettings]:
    """N = W·K whole replies; the pair picks one."""
    return chunk_level_beam_search(models, corners.best_of_n(settings))


def sample(models: Models, settings: SearchSettings) -> tuple[Search, SearchSettings]:
    """One reply of the large model alone."""
    return Search(LargeModel(models.large, raw=models.raw)), _alone(settings)


def beam_search(models: Models, settings: SearchSettings) -> tuple[BeamSearch, SearchSettings]:
    """The W likeliest beginnings under the large model alone, token by token."""
    return BeamSearch(LargeModel(models.large, raw=models.raw)), settings


def aligntree(models: Models, settings: SearchSettings) -> tuple[AlignTree, SearchSettings]:
    """Monte Carlo tree search over chunks with the pair as value (W2S-AlignTree, arXiv 2511.11518)."""
    return AlignTree(LargeModel(models.large, raw=models.raw), models.guide(settings)), settings


def emulated_fine_tuning(models: Models, settings: SearchSettings) -> tuple[Search, SearchSettings]:
    """One reply from softmax(z_large + β·(z_tuned − z_untuned)) (arXiv 2310.12962; proxy tuning, 2401.08565)."""
    tuned, untuned = models.pair()
    added = ((tuned, settings.beta), (untuned, -settings.beta))
    return Search(LargeModel(models.large, raw=models.raw, added=added)), _alone(settings)


def _alone(settings: SearchSettings) -> SearchSettings:
    """One reply, in chunks that say only how often others may join the batch."""
    return corners.sample(settings).model_copy(update={"chunk": STEP})


METHODS: dict[str, Method] = {
    "cbs": chunk_level_beam_search,
    "best-of-n": best_of_n,
    "sample": sample,
    "eft": emulated_fine_tuning,
    "beam": beam_search,
    "aligntree": aligntree,
}
