"""From the attributes of subjects to the controls of a model and to the tensors of an item."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from medgen.checks import MedgenError, nearest
from medgen.diffusion.randomness import derive_seed
from medgen.io.datasets.case import Attribute
from medgen.models.controls import Condition, Control, class_control, condition_tensors, number_control, text_control
from medgen.trainers.data_config import ControlConfig, Measured, template_fields
from medgen.trainers.measured import Attributes, BinnedAttributes, binned, numbers_of, resolved_edges

MOST_PREPARED = 4096
PROMPTS_A_SUBJECT = 8
MOST_SAID = 20_000


class Encoder(Protocol):
    """Texts to token embeddings; see :class:`medgen.models.text.TextEncoder`."""

    name: str
    sha256: str
    tokens: int
    text_dim: int

    def encode(self, texts: Sequence[str]) -> Tensor:
        """``(N, L, E)`` float32, padding zero."""


class Conditions:
    """Makes what an item says of its subject.

    Args:
        settings: the controls of the configuration.
        table: its measured attributes.
        records: attributes of the training subjects, measured on their labels; in 2D of some slices of each.
        encoder: of texts; needed with a control of kind ``text``.
        prepare: encode all prompts at once, where they are few, so that no worker need do it.
        others: attributes of further people, for the names of classes.

    Attributes:
        controls: what the model declares, with the distribution over ``records``.

    Raises:
        MedgenError: an attribute that no subject has, a class that is not declared, numbers that do not differ, a
            prompt that names an unknown attribute.
    """

    def __init__(
        self,
        settings: Sequence[ControlConfig],
        table: Mapping[str, Measured],
        records: Sequence[Mapping[str, Attribute]],
        encoder: Encoder | None = None,
        prepare: bool = False,
        others: Sequence[Mapping[str, Attribute]] = (),
    ) -> None:
        self._bins = BinnedAttributes(table, records)
        self.settings = tuple(settings)
        self.encoder = encoder
        whole = [self._bins.added(record) for record in records]
        for setting in settings:
            if setting.kind != "text":
                _check_attribute(setting.attribute, f"control '{setting.name}'", whole)
        self._edges = {
            s.name: resolved_edges(s.attribute, s.edges, s.quantiles, len(s.values), numbers_of(s.attribute, whole))
            for s in settings
            if s.edges or s.quantiles
        }
        self._records = [{**record, **self._classes(record)} for record in whole]
        self._embedded: dict[str, Tensor] = {}
        known = [*self._records, *(self._classes(record) for record in others)]
        self._names = {
            s.name: tuple(sorted({str(record[s.name]) for record in known if s.name in record}))
            for s in settings
            if s.kind == "class"
        }
        self.controls = tuple(self._control(setting) for setting in settings)
        for setting in settings:
            if prepare and setting.kind == "text":
                self._prepare(setting)

    def attributes(self, record: Mapping[str, Attribute]) -> Attributes:
        """A subject's attributes, with names of ranges and classes."""
        whole = self._bins.added(record)
        return {**whole, **self._classes(whole)}

    def request(self, record: Mapping[str, Attribute], seed: int) -> dict[str, Condition]:
        """What a subject is, as a request that asks for it; what is not known is left out.

        Args:
            record: attributes, measured ones included.
            seed: of the prompt and its words.
        """
        whole = self.attributes(record)
        asked: dict[str, Condition] = {}
        for setting, control in zip(self.settings, self.controls, strict=True):
            value = whole.get(setting.name if setting.kind == "class" else setting.attribute)
            if setting.kind == "text":
                value = _prompt(setting, whole, derive_seed(seed, "prompt"))
            if value is not None and (control.kind != "class" or value in control.values):
                asked[setting.name] = value if control.kind != "number" else float(value)
        return asked

    def tensors(self, record: Mapping[str, Attribute], seed: int) -> dict[str, Tensor]:
        """``classes`` ``(Kc,)``, ``numbers`` ``(Kn,)`` and ``text`` ``(L, E)`` of an item."""
        made = condition_tensors(self.controls, self.request(record, seed), self._encode)
        return {name: value[0] for name, value in made.items()}

    def _classes(self, record: Mapping[str, Attribute]) -> Attributes:
        """The class of each class control, by the control's name."""
        found: Attributes = {}
        for setting in self.settings:
            value = record.get(setting.attribute)
            if setting.kind != "class" or value is None:
                continue
            if setting.name in self._edges:
                found[setting.name] = binned(_number(setting, value), self._edges[setting.name], setting.values)
            else:
                found[setting.name] = value if isinstance(value, str) else f"{value:g}"
        return found

    def _control(self, setting: ControlConfig) -> Control:
        if setting.kind == "number":
            return number_control(setting.name, numbers_of(setting.attribute, self._records), _unit(setting.attribute))
        if setting.kind == "class":
            values = [str(record[setting.name]) for record in self._records if setting.name in record]
            names = setting.values or self._bins.names(setting.attribute) or self._names[setting.name]
            return class_control(setting.name, values, names)
        if self.encoder is None:
            raise MedgenError(f"control '{setting.name}' of kind 'text' needs a text encoder. Pass encoder=...")
        for template in setting.prompts:
            for name in template_fields(template):
                _check_attribute(name, f"prompt '{template}'", self._records)
        prompts = [
            prompt
            for number, record in enumerate(self._records)
            for draw in range(PROMPTS_A_SUBJECT)
            if (prompt := _prompt(setting, record, derive_seed("prompts", number, draw))) is not None
        ]
        encoder = self.encoder
        return text_control(prompts, encoder.name, encoder.sha256, encoder.tokens, encoder.text_dim)

    def said(self, count: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Prompts with what each says, from which a text encoder can learn it before anything is generated.

        Args:
            count: at most, drawn from all that the training subjects can make.
            seed: of the draw.

        Returns:
            Token embeddings ``(N, L, E)``, and for each attribute that prompts name by words the number of its value
            ``(N,)``, -1 where a prompt does not name it; nothing where no prompt uses words.
        """
        setting = next((s for s in self.settings if s.kind == "text" and s.words), None)
        if setting is None:
            return torch.zeros(0, 0, 0), {}
        prompts = list(itertools.islice(_all_prompts(setting, self._records), MOST_SAID))
        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()[:count]
        chosen = [prompts[i] for i in order]
        names = {name: sorted({values[name] for _, values in prompts if name in values}) for name in setting.words}
        answers = {
            name: torch.tensor([known.index(values[name]) if name in values else -1 for _, values in chosen])
            for name, known in names.items()
        }
        rows = [self._encode([prompt])[0] for prompt, _ in chosen]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), answers

    def _prepare(self, setting: ControlConfig) -> None:
        """Encode all prompts, if they are few."""
        prompts = list(itertools.islice(_all_prompts(setting, self._records), MOST_PREPARED + 1))
        if len(prompts) <= MOST_PREPARED:
            for prompt, _ in prompts:
                self._encode([prompt])

    def _encode(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of one text, ``(1, L, E)``, L as long as the text."""
        (text,) = texts
        if text not in self._embedded:
            if self.encoder is None:
                raise MedgenError("a prompt needs a text encoder. Pass encoder=...")
            found = self.encoder.encode([text])[0].float()
            used = int(found.abs().amax(1).nonzero().max()) + 1
            if len(self._embedded) > 2 * MOST_PREPARED:
                self._embedded.clear()
            self._embedded[text] = found[:used].clone()
        return self._embedded[text][None]


def dropped(item: dict[str, Tensor], controls: Sequence[Control], share: float, stream: torch.Generator) -> None:
    """Leave controls of an item out: each with probability ``share``; of several, all at once with the same, too.

    Args:
        item: changed in place; "not given" is -1, NaN and zeros.
        controls: of the model, in the order of the item's columns.
        share: probability.
        stream: of the draws.
    """
    draws = torch.rand(1 + len(controls), generator=stream, dtype=torch.float64)
    gone = draws[1:] < share
    if len(controls) > 1 and draws[0] < share:
        gone[:] = True
    column = {"class": 0, "number": 0, "text": 0}
    for control, out in zip(controls, gone.tolist(), strict=True):
        place = column[control.kind]
        column[control.kind] += 1
        if not out:
            continue
        if control.kind == "class":
            item["classes"][place] = -1
        elif control.kind == "number":
            item["numbers"][place] = float("nan")
        else:
            item["text"].zero_()


def _check_attribute(name: str, where: str, records: Sequence[Mapping[str, Attribute]]) -> None:
    """Raises unless some training subject has an attribute."""
    if any(name in record for record in records):
        return
    known = sorted({key for record in records for key in record})
    hint = nearest(name, known) or f" Known: {', '.join(known) or 'none'}."
    raise MedgenError(f"{where}: no training subject has the attribute '{name}'.{hint}")


def _number(setting: ControlConfig, value: Attribute) -> float:
    if isinstance(value, str):
        raise MedgenError(
            f"control '{setting.name}': ranges need a number, '{setting.attribute}' is '{value}'. Leave edges out."
        )
    return value


def _unit(attribute: str) -> str:
    """The unit that ends an attribute's name: ``volume_ml``."""
    end = attribute.rsplit("_", 1)[-1]
    return end if "_" in attribute and end in ("ml", "mm", "mm2", "mm3", "kg", "cm", "years") else ""


def _said(name: str, value: Attribute, setting: ControlConfig) -> tuple[str, ...]:
    """What a value is called in a prompt; numbers that have no words are formatted there."""
    plain = value if isinstance(value, str) else f"{value:g}"
    return setting.words.get(name, {}).get(plain, ())


def _prompt(setting: ControlConfig, record: Mapping[str, Attribute], seed: int) -> str | None:
    """One of the prompts that suit a subject; None where each names something that is not known of it."""
    suited = [prompt for prompt in setting.prompts if all(name in record for name in template_fields(prompt))]
    if not suited:
        return None
    stream = torch.Generator().manual_seed(seed)
    template = suited[int(torch.randint(len(suited), (), generator=stream))]
    chosen: dict[str, Attribute] = {}
    for name in sorted(set(template_fields(template))):
        words = _said(name, record[name], setting)
        chosen[name] = words[int(torch.randint(len(words), (), generator=stream))] if words else record[name]
    return _filled(template, chosen)


def _filled(template: str, values: Mapping[str, Attribute]) -> str:
    """A template with its values.

    Raises:
        MedgenError: a number format for a text.
    """
    try:
        return _Plain().vformat(template, (), dict(values))
    except (ValueError, TypeError) as error:
        raise MedgenError(f"prompt '{template}': {error} for {dict(values)}. Correct the format.") from error


class _Plain(string.Formatter):
    """Numbers without a format lose their trailing zeros."""

    def format_field(self, value: Attribute, format_spec: str) -> str:
        return format(value, format_spec or ("" if isinstance(value, str) else "g"))


def _all_prompts(
    setting: ControlConfig, records: Sequence[Mapping[str, Attribute]]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Every prompt that the values of the training subjects can make, and the values that it names by words."""
    values: dict[str, set[Attribute]] = {}
    for record in records:
        for name, value in record.items():
            values.setdefault(name, set()).add(value)
    made: set[str] = set()
    for template in setting.prompts:
        names = sorted(set(template_fields(template)))
        choices = [
            [
                (value, word)
                for value in sorted(values[name], key=str)
                for word in _said(name, value, setting) or (value,)
            ]
            for name in names
        ]
        for chosen in itertools.product(*choices):
            prompt = _filled(template, {name: word for name, (_, word) in zip(names, chosen, strict=True)})
            if prompt not in made:
                made.add(prompt)
                named = {n: str(v) for n, (v, _) in zip(names, chosen, strict=True) if n in setting.words}
                yield prompt, named
