"""A conversation under any chat template and tokenizer: ids, which of them are the replies, exact byte spans."""

from consilience.chat.pieces import token_bytes
from consilience.chat.render import Rendered, render, render_prompt

__all__ = ["Rendered", "render", "render_prompt", "token_bytes"]
