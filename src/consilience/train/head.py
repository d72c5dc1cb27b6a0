"""The language-model head, block by block: a loss over many positions without ever holding their logits together.

A batch of B·T positions under a vocabulary V has B·T·V logits, and training holds them several times: at
4 × 2,048 × 152k in float32 that is 5 GB apiece. Here the hidden states of the positions that are learnt go through the
head in blocks; each block's loss is differentiated at once, and only the gradients of the hidden states [N, D] and of
the head [V, D] are kept.

Shapes: B conversations, T tokens, N learnt positions, M of them in a block, D width, V vocabulary.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from consilience.errors import BackendError

BLOCK_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 26}  # numbers in a block: 32 MiB and 256 MiB in float32

PROBES = (0.5, -20.0)  # logits on which a model must do what `_after_head` does: a scale shows, and so does a cap

SumsOf = Callable[[Tensor, slice], dict[str, Tensor]]


def loss_through_head(
    model: Any,
    inputs: Mapping[str, Tensor],
    learnt_BT: Tensor,
    sums_of: SumsOf,
    *,
    cuts: Tensor | None = None,
    block_logits: int | None = None,
) -> dict[str, Tensor]:
    """The sums of `sums_of(logits_MV, positions)` over blocks of the learnt positions; "loss" carries the gradient.

    `positions` is the slice of the N learnt positions, row by row, that a block holds. `cuts` (bool [N]) says before
    which positions a block may begin, where terms reach over several positions; anywhere by default. The value and the
    gradient are those of one block with everything. Any model with a head (`get_output_embeddings`), wrapped or not;
    what transformers does to logits after the head (a soft cap, a scale) is done to the blocks.

    Raises `BackendError` when the model's head is not used in its forward pass, or when the model does something else
    to its logits after it.
    """
    sums: dict[str, Tensor] = {}

    def use(hidden_BTD: Tensor, head: Any, finish: Finish, apply: Callable[[Tensor], Tensor]) -> Tensor:
        hidden_ND = hidden_BTD[learnt_BT.to(hidden_BTD.device)]
        blocks = list(_blocks(len(hidden_ND), _block_positions(head, hidden_ND, block_logits), cuts))
        if type(head) is nn.Linear:
            names: list[str] = []
            values = _Blockwise.apply(hidden_ND, head.weight, head.bias, finish, sums_of, blocks, names)
            sums.update(zip(names, values, strict=True))
        else:  # adapters on the head, quantised heads: recomputed in the backward pass instead
            for block in blocks:
                add_up(sums, _recomputed(apply, finish, sums_of, hidden_ND, block))
        return sums["loss"]

    sums["loss"] = _through_head(model, inputs, use)
    return sums


def logprobs_through_head(
    model: Any,
    inputs: Mapping[str, Any],
    place_N: Tensor,
    token_N: Tensor,
    *,
    block_logits: int | None = None,
) -> Tensor:
    """Log-probabilities (nats, float32, differentiable) of the tokens `token_N`, shape [N].

    `place_N` are the places, in the flattened [B * T], of the hidden states that predict them; one may serve several
    tokens. Logits are computed in blocks, and anew in the backward pass. Raises as `loss_through_head`.
    """

    def use(hidden_BTD: Tensor, head: Any, finish: Finish, apply: Callable[[Tensor], Tensor]) -> Tensor:
        hidden_ND = hidden_BTD.flatten(0, -2)[place_N.to(hidden_BTD.device)]
        size, tokens_N = _block_positions(head, hidden_ND, block_logits), token_N.to(hidden_BTD.device)
        blocks = list(_blocks(len(hidden_ND), size, None))
        if type(head) is nn.Linear:
            logprob_N: Tensor = _Logprobs.apply(hidden_ND, head.weight, head.bias, finish, tokens_N, blocks)
            return logprob_N

        def of_block(hidden_MD: Tensor, token_M: Tensor) -> Tensor:
            logits_MV = finish(apply(hidden_MD)).float()
            return logits_MV.gather(-1, token_M[:, None])[:, 0] - logits_MV.logsumexp(-1)

        parts = [checkpoint(of_block, hidden_ND[block], tokens_N[block], use_reentrant=False) for block in blocks]
        return torch.cat(parts)

    return _through_head(model, inputs, use)


Finish = Callable[[Tensor], Tensor]  # what is done to logits after the head
UseHidden = Callable[[Tensor, Any, Finish, Callable[[Tensor], Tensor]], Tensor]


def _through_head(model: Any, inputs: Mapping[str, Any], use: UseHidden) -> Tensor:
    """What `use(hidden, head, finish, the head's own forward pass)` gives, called where the head would be."""
    bare = _unwrapped(model)
    head, finish = bare.get_output_embeddings(), _after_head(bare.config)
    used: list[Tensor] = []

    def in_place_of_head(hidden_BTD: Tensor, apply: Callable[[Tensor], Tensor]) -> Tensor:
        used.append(use(hidden_BTD, head, finish, apply))
        # DistributedDataParallel looks for unused parameters behind what the model gives back: the result is among it.
        given_back = torch.stack([*used[-1].new_tensor(PROBES), used[-1].sum()])
        return given_back.expand(*hidden_BTD.shape[:-1], -1).clone()  # FSDP warns of views

    with _in_place_of(head, in_place_of_head):
        logits_BTV = model(**inputs, use_cache=False).logits
    if not used:
        raise BackendError(f"{type(bare).__name__} does not use its output embeddings; it cannot be trained here.")
    probes = used[-1].new_tensor(PROBES)
    if not torch.allclose(logits_BTV.detach()[0, 0, : len(PROBES)].to(probes), finish(probes), rtol=1e-2):
        raise BackendError(
            f"{type(bare).__name__} does something to its logits after the head that is not known here; it cannot be "
            "trained. Known are a soft cap and a scale, by the names that Gemma, Cohere, Granite and Falcon give them."
        )
    result: Tensor = _BehindOutput.apply(used[-1], logits_BTV)  # type: ignore[no-untyped-call]
    return result


class _BehindOutput(torch.autograd.Function):
    """`value`, with a gradient of zero for `output`.

    FSDP and ZeRO-3 make a module's parameters whole again when the gradient of its output arrives; a loss that leaves
    the model beside its output would be differentiated without them.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, output: Tensor) -> Tensor:
        ctx.output = output.shape, output.dtype, output.device
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        shape, dtype, device = ctx.output
        return grad, torch.zeros(shape, dtype=dtype, device=device)


def _block_positions(head: Any, hidden_ND: Tensor, block_logits: int | None) -> int:
    """How many positions a block holds."""
    held = block_logits or BLOCK_LOGITS.get(hidden_ND.device.type, BLOCK_LOGITS["cuda"])
    return max(1, held // getattr(head, "out_features", head.weight.shape[0]))


def add_up(sums: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    """Adds `more` to `sums`, name by name."""
    for name, value in more.items():
        sums[name] = sums[name] + value if name in sums else value


class _Blockwise(torch.autograd.Function):
    """Forward and backward of every block at once: what is kept for the backward pass is already its result."""

    @staticmethod
    def forward(ctx: Any, hidden_ND, weight_VD, bias_V, finish, sums_of, blocks, names):  # type: ignore[no-untyped-def]
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        hidden_grad_ND = torch.empty_like(hidden_ND) if needs_hidden else None
        weight_grad_VD = _accumulator(weight_VD) if needs_weight else None
        bias_grad_V = torch.zeros_like(bias_V) if needs_bias else None
        computed_VD = _as_computed(weight_VD)  # once, not once a block
        sums: dict[str, Tensor] = {}
        for block in blocks:
            logits_MV = nn.functional.linear(hidden_ND[block], computed_VD, bias_V)
            with torch.enable_grad():
                leaf_MV = logits_MV.requires_grad_(needs_hidden or needs_weight or needs_bias)
                found = sums_of(finish(leaf_MV), block)
            add_up(sums, {name: value.detach() for name, value in found.items()})
            if not leaf_MV.requires_grad:
                continue
            (grad_MV,) = torch.autograd.grad(found["loss"], leaf_MV)
            del found, leaf_MV, logits_MV
            if hidden_grad_ND is not None:
                hidden_grad_ND[block] = grad_MV @ computed_VD
            if weight_grad_VD is not None:
                weight_grad_VD.addmm_(grad_MV.T.to(weight_grad_VD.dtype), hidden_ND[block].to(weight_grad_VD.dtype))
            if bias_grad_V is not None:
                bias_grad_V += grad_MV.sum(0)
        ctx.grads = hidden_grad_ND, _as_stored(weight_grad_VD, weight_VD), bias_grad_V
        names[:] = ["loss", *(name for name in sums if name != "loss")]
        results = tuple(sums[name] for name in names)
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    def backward(ctx: Any, loss_grad, *_):  # type: ignore[no-untyped-def]
        grads, ctx.grads = ctx.grads, None  # given away: the head's is as large as the head
        return (*(None if grad is None else grad.mul_(loss_grad) for grad in grads), None, None, None, None)


class _Logprobs(torch.autograd.Function):
    """Two numbers a position are kept for the backward pass, which computes the logits of a block again."""

    @staticmethod
    def forward(ctx: Any, hidden_ND, weight_VD, bias_V, finish, token_N, blocks):  # type: ignore[no-untyped-def]
        computed_VD = _as_computed(weight_VD)
        logprob_N = torch.empty(len(hidden_ND), device=hidden_ND.device)
        norm_N = torch.empty_like(logprob_N)
        for block in blocks:
            logits_MV = finish(nn.functional.linear(hidden_ND[block], computed_VD, bias_V)).float()
            norm_N[block] = logits_MV.logsumexp(-1)
            logprob_N[block] = logits_MV.gather(-1, token_N[block, None])[:, 0] - norm_N[block]
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, token_N, norm_N)
        ctx.finish, ctx.blocks, ctx.dtype = finish, blocks, computed_VD.dtype
        return logprob_N

    @staticmethod
    @torch.no_grad()
    def backward(ctx, grad_N):  # type: ignore[no-untyped-def]
        hidden_ND, weight_VD, bias_V, token_N, norm_N = ctx.saved_tensors
        computed_VD = weight_VD.to(ctx.dtype)  # again: kept from the forward pass it would be a second head
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        hidden_grad_ND = torch.empty_like(hidden_ND) if needs_hidden else None
        weight_grad_VD = _accumulator(weight_VD) if needs_weight else None
        bias_grad_V = torch.zeros_like(bias_V) if needs_bias else None
        for block in ctx.blocks:
            with torch.enable_grad():
                hidden_MD = hidden_ND[block].to(ctx.dtype)
                leaf_MV = nn.functional.linear(hidden_MD, computed_VD, bias_V).detach().requires_grad_()
                finished_MV = ctx.finish(leaf_MV)
            # d logprob / d logits = [v is the token] - softmax
            grad_MV = (finished_MV.detach() - norm_N[block, None]).exp_().mul_(-grad_N[block, None])
            grad_MV.scatter_add_(-1, token_N[block, None], grad_N[block, None])
            grad_MV = grad_MV.to(leaf_MV.dtype)
            if finished_MV is not leaf_MV:
                (grad_MV,) = torch.autograd.grad(finished_MV, leaf_MV, grad_MV)
            del leaf_MV, finished_MV
            if hidden_grad_ND is not None:
                hidden_grad_ND[block] = grad_MV @ computed_VD
            if weight_grad_VD is not None:
                weight_grad_VD.addmm_(grad_MV.T.to(weight_grad_VD.dtype), hidden_ND[block].to(weight_grad_VD.dtype))
            if bias_grad_V is not None:
                bias_grad_V += grad_MV.sum(0)
        return hidden_grad_ND, _as_stored(weight_grad_VD, weight_VD), bias_grad_V, None, None, None


def _accumulator(weight_VD: Tensor) -> Tensor:
    """Zeros for the head's gradient, in float32: many blocks added up in bfloat16 lose what the single ones hold."""
    return torch.zeros_like(weight_VD, dtype=torch.promote_types(weight_VD.dtype, torch.float32))


def _as_stored(grad_VD: Tensor | None, weight_VD: Tensor) -> Tensor | None:
    return None if grad_VD is None else grad_VD.to(weight_VD.dtype)


def _as_computed(weight_VD: Tensor) -> Tensor:
    """The weight in the type that autocast computes in."""
    kind = weight_VD.device.type
    return weight_VD.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else weight_VD


def _recomputed(
    apply: Callable[[Tensor], Tensor],
    finish: Callable[[Tensor], Tensor],
    sums_of: SumsOf,
    hidden_ND: Tensor,
    block: slice,
) -> dict[str, Tensor]:
    names: list[str] = []

    def sums_of_block(hidden_MD: Tensor) -> tuple[Tensor, ...]:
        found = sums_of(finish(apply(hidden_MD)), block)
        names[:] = found
        return tuple(found.values())

    values: tuple[Tensor, ...] = checkpoint(sums_of_block, hidden_ND[block], use_reentrant=False)
    return {name: value if name == "loss" else value.detach() for name, value in zip(names, values, strict=True)}


def _blocks(positions: int, size: int, cuts: Tensor | None) -> Iterator[slice]:
    """Slices of about `size` positions; a block that may not be cut there is longer."""
    allowed = range(1, positions + 1) if cuts is None else [*cuts.nonzero()[:, 0].tolist(), positions]
    if not positions:
        yield slice(0, 0)  # a loss of zero in which every parameter has its part, as other processes expect of this one
    start = 0
    while start < positions:
        end = allowed[bisect.bisect_left(allowed, min(start + size, positions))]
        yield slice(start, end)
        start = end


def _unwrapped(model: Any) -> Any:
    """The model itself, out of what data parallelism puts around it."""
    while hasattr(model, "module"):
        model = model.module
    return model


def _after_head(config: Any) -> Callable[[Tensor], Tensor]:
    """What transformers does to the logits after the head, by the names in which its configurations say so."""
    config = config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", getattr(config, "logits_soft_cap", None))  # Gemma, RecurrentGemma
    times = getattr(config, "logit_scale", getattr(config, "lm_head_multiplier", None))  # Cohere, Falcon-H1
    over = getattr(config, "logits_scaling", None)  # Granite

    def finish(logits_MV: Tensor) -> Tensor:
        if times is not None:
            logits_MV = logits_MV * times
        if over is not None:
            logits_MV = logits_MV / over
        return cap * torch.tanh(logits_MV / cap) if cap is not None else logits_MV

    return finish


@contextlib.contextmanager
def _in_place_of(head: Any, use: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]) -> Iterator[None]:
    """While it lasts, the head's forward pass is `use(hidden, the head's own forward pass)`.

    Inside the forward pass, because that is where sharded parameters are whole.
    """
    own, had = head.forward, "forward" in vars(head)  # accelerate puts a forward of its own on a module
    head.forward = lambda hidden_BTD: use(hidden_BTD, own)
    try:
        yield
    finally:
        if had:
            head.forward = own
        else:
            del head.forward
