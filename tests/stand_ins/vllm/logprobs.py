"""`vllm.logprobs`."""

from dataclasses import dataclass, field


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class FlatLogprobs:
    """Of every position first the token that stands there, then the likeliest; doubled where it is one of them."""

    start_indices: list[int] = field(default_factory=list)
    end_indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ranks: list[int | None] = field(default_factory=list)
    decoded_tokens: list[str | None] = field(default_factory=list)

    def append(self, position: None) -> None:
        self.start_indices.append(len(self.logprobs))
        self.end_indices.append(len(self.logprobs))

    def append_fast(self, token_ids: list[int], logprobs: list[float], ranks: list[int]) -> None:
        self.start_indices.append(len(self.logprobs))
        self.token_ids += token_ids
        self.logprobs += logprobs
        self.ranks += ranks
        self.decoded_tokens += [None] * len(token_ids)
        self.end_indices.append(len(self.logprobs))

    def __len__(self) -> int:
        return len(self.start_indices)

    def __getitem__(self, position: int) -> dict[int, Logprob]:
        of = slice(self.start_indices[position], self.end_indices[position])
        listed = zip(self.token_ids[of], self.logprobs[of], self.ranks[of], strict=True)
        return {token: Logprob(logprob, rank) for token, logprob, rank in listed}
