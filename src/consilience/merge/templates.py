"""Whose chat template a merge ends up with."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from consilience.errors import ConfigError, nearest
from consilience.merge.inputs import Input, as_json
from consilience.merge.recipe import AUTO, ModelRef, Recipe

FILE = "chat_template.jinja"

# The formats that mergekit knows by name, written anew from their descriptions.
NAMED = {
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
        "{{ message.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}"
        "{% if message.role == 'system' %}{% set ns.system = message.content + '\n\n' %}"
        "{% elif message.role == 'user' %} [INST] {{ ns.system + message.content }} [/INST]{% set ns.system = '' %}"
        "{% else %} {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "alpaca": (
        "{% for message in messages %}{% if message.role == 'system' %}{{ message.content | trim }}\n\n"
        "{% elif message.role == 'user' %}### Instruction:\n{{ message.content | trim }}\n\n"
        "{% elif message.role == 'user_context' %}### Input:\n{{ message.content | trim }}\n\n"
        "{% else %}### Response:\n{{ message.content | trim }}\n\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}### Response:\n{% endif %}"
    ),
    "exaone": (
        "{% for message in messages %}{% if loop.first and message.role != 'system' %}[|system|][|endofturn|]\n"
        "{% endif %}[|{{ message.role }}|]{{ message.content }}"
        "{% if message.role == 'user' %}\n{% else %}[|endofturn|]\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[|assistant|]{% endif %}"
    ),
}


def chat_template_of(
    recipe: Recipe,
    inputs: Mapping[ModelRef, Input],
    donor: ModelRef,
    files: Mapping[str, Path | bytes],
    note: Callable[[str], None],
) -> dict[str, Path | bytes]:
    """`files` with the chat template that the recipe asks for; unchanged where it asks for none."""
    asked = recipe.chat_template
    if asked is None:
        return dict(files)
    if isinstance(asked, ModelRef):
        template = stored_template(inputs[asked])
        if template is None:
            raise ConfigError(f"chat_template: {inputs[asked].label} has no chat template.")
        _note_other_end(inputs[asked], inputs[donor], note)
    elif asked == AUTO:
        template = _most_common(inputs, donor, note)
        if template is None:
            return dict(files)
    elif asked in NAMED:
        template = NAMED[asked]
    elif "{" in asked:
        template = asked
    else:
        there_are = [AUTO, *NAMED, *(given.label for given in inputs.values() if not recipe.is_mergekit)]
        raise ConfigError(
            f"chat_template {asked!r} is no template and no name.{nearest(asked, there_are)} There are: "
            f"{', '.join(there_are)}, or the template itself."
        )
    changed = dict(files) | {FILE: template.encode()}
    settings = _read(files.get("tokenizer_config.json"))
    if "chat_template" in settings:  # two templates in one folder: whichever a reader prefers, it gets this one
        settings["chat_template"] = template
        changed["tokenizer_config.json"] = as_json(settings)
    return changed


def stored_template(given: Input) -> str | None:
    """A model's default chat template, or None."""
    path = given.file(FILE)
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = given.tokenizer_config.get("chat_template")
    if isinstance(template, list):
        template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _most_common(inputs: Mapping[ModelRef, Input], donor: ModelRef, note: Callable[[str], None]) -> str | None:
    """The template of most models; the donor's where several are as frequent."""
    by_model = {ref: template.strip() for ref, given in inputs.items() if (template := stored_template(given))}
    if not by_model:
        note("chat_template: auto found no template in any model; the result has none")
        return None
    counts = Counter(by_model.values())
    most = max(counts.values())
    first = [by_model[donor]] if donor in by_model else []
    chosen = next(template for template in [*first, *by_model.values()] if counts[template] == most)
    owners = [ref for ref, template in by_model.items() if template == chosen]
    note(
        f"chat template: that of {', '.join(inputs[ref].label for ref in owners)}, {most} of {len(by_model)} templates"
    )
    if donor not in owners:
        _note_other_end(inputs[owners[0]], inputs[donor], note)
    return stored_template(inputs[donor if donor in owners else owners[0]])


def _note_other_end(owner: Input, donor: Input, note: Callable[[str], None]) -> None:
    """A template whose turns end in a token that the donor does not stop at makes replies that never end."""
    ends = [_end(given) for given in (owner, donor)]
    if ends[0] and ends[0] != ends[1]:
        note(
            f"the chat template is that of {owner.label}, whose replies end with {ends[0]!r}; the donor {donor.label} "
            f"ends with {ends[1]!r}. See that generation_config.json stops at both"
        )


def _end(given: Input) -> str:
    end: Any = given.tokenizer_config.get("eos_token", "")
    return str(end.get("content", "")) if isinstance(end, Mapping) else str(end or "")


def _read(file: Path | bytes | None) -> dict[str, Any]:
    if file is None:
        return {}
    found = json.loads(file if isinstance(file, bytes) else file.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}
