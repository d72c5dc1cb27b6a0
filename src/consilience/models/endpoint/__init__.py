"""A client of any OpenAI-compatible HTTP API: answers or named statuses, kept in a cache, within a budget. No torch.

with Endpoint(EndpointSettings(url="http://localhost:8000/v1", model="m"), cache=Path("answers.sqlite")) as endpoint:
    answers = endpoint.ask([Request(messages=(Message("user", "2 + 2?"),), max_tokens=8)])
"""

from consilience.models.endpoint.answer import Answer, Status, Token
from consilience.models.endpoint.cache import Spent
from consilience.models.endpoint.client import Endpoint, notes_kept
from consilience.models.endpoint.request import Request, samples
from consilience.models.endpoint.settings import Budget, EndpointSettings, Price

__all__ = [
    "Answer",
    "Budget",
    "Endpoint",
    "EndpointSettings",
    "Price",
    "Request",
    "Spent",
    "Status",
    "Token",
    "notes_kept",
    "samples",
]
