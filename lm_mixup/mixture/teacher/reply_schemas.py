"""The forms that a teacher model fills in: one for each task type, alone or as a list of poor variants.

What validates here can be written and read back by `core.task_types`, so a reply that cannot is no reply.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator

from lm_mixup.core.task_types import (
    Cs,
    FormatError,
    Mcq,
    Para,
    Qa,
    Sample,
    TaskType,
    Tfq,
    parse_answer,
    parse_output,
    task_type_of,
    write_answer,
    write_output,
)

_MOST_FACTS = 8
_STRICT = ConfigDict(extra="forbid")


def _stated(text: str) -> str:
    if not text.strip():
        raise ValueError("empty")
    return text.strip()


# Checked here and not in the JSON schema: servers differ in which bounds they know.
Text = Annotated[str, AfterValidator(_stated)]


class QaForm(BaseModel):
    """A question and its answer."""

    model_config = _STRICT
    question: Text
    answer: Text

    @model_validator(mode="after")
    def _fits(self) -> QaForm:
        return _checked(self)


class McqForm(BaseModel):
    """A question, four options and the letter of the right one."""

    model_config = _STRICT
    question: Text
    option_a: Text
    option_b: Text
    option_c: Text
    option_d: Text
    answer: Literal["A", "B", "C", "D"]

    @model_validator(mode="after")
    def _fits(self) -> McqForm:
        return _checked(self)


class TfqForm(BaseModel):
    """A statement and whether it holds."""

    model_config = _STRICT
    statement: Text
    answer: bool = Field(strict=True)

    @model_validator(mode="after")
    def _fits(self) -> TfqForm:
        return _checked(self)


class CsForm(BaseModel):
    """A category and a statement that belongs to it."""

    model_config = _STRICT
    category: Text
    statement: Text

    @model_validator(mode="after")
    def _fits(self) -> CsForm:
        return _checked(self)


class ParaForm(BaseModel):
    """A paragraph and the prompt that it answers."""

    model_config = _STRICT
    prompt: Text
    text: Text

    @model_validator(mode="after")
    def _fits(self) -> ParaForm:
        return _checked(self)


Form = QaForm | McqForm | TfqForm | CsForm | ParaForm
AnyForm = TypeVar("AnyForm", bound=Form)


class Told(BaseModel, Generic[AnyForm]):
    """A sample and the reasoning before it."""

    model_config = _STRICT
    sample: AnyForm
    cot: Text

    @model_validator(mode="after")
    def _fits(self) -> Self:
        parse_output(write_output(self.cot, write_answer(sample_of(self.sample))))
        return self


class Written(Told[AnyForm], Generic[AnyForm]):
    """A sample, the reasoning before it, and the facts that it tells."""

    facts: list[Text] = Field(min_length=1, max_length=_MOST_FACTS)


_FORMS: dict[TaskType, type[Any]] = {
    "qa": QaForm,
    "mcq": McqForm,
    "tfq": TfqForm,
    "cs": CsForm,
    "para": ParaForm,
}
WRITTEN: dict[TaskType, type[Written[Any]]] = {
    "qa": Written[QaForm],
    "mcq": Written[McqForm],
    "tfq": Written[TfqForm],
    "cs": Written[CsForm],
    "para": Written[ParaForm],
}
TOLD: dict[TaskType, type[Told[Any]]] = {
    "qa": Told[QaForm],
    "mcq": Told[McqForm],
    "tfq": Told[TfqForm],
    "cs": Told[CsForm],
    "para": Told[ParaForm],
}


@cache
def variants_form(task_type: TaskType, count: int) -> type[BaseModel]:
    """The form with a list `variants` of exactly so many samples."""
    one: Any = _FORMS[task_type]
    listed = Annotated[list[one], Field(min_length=count, max_length=count)]
    form: type[BaseModel] = create_model(f"Variants{count}", __config__=_STRICT, variants=(listed, ...))
    return form


def sample_of(form: Form) -> Sample:
    """The sample that a form holds. Line ends outside paragraphs are spaces: lines are the format's."""
    match form:
        case QaForm():
            return Qa(_line(form.question), _line(form.answer))
        case McqForm():
            options = (form.option_a, form.option_b, form.option_c, form.option_d)
            a, b, c, d = map(_line, options)
            return Mcq(_line(form.question), (a, b, c, d), form.answer)
        case TfqForm():
            return Tfq(_line(form.statement), form.answer)
        case CsForm():
            return Cs(_line(form.category), _line(form.statement))
        case ParaForm():
            return Para(form.text.strip())


def prompt_of(form: Form) -> str:
    """What a paragraph answers; the other samples carry their own prompt."""
    return _line(form.prompt) if isinstance(form, ParaForm) else ""


def _checked(form: AnyForm) -> AnyForm:
    sample = sample_of(form)
    if parse_answer(task_type_of(sample), write_answer(sample)) != sample:
        raise FormatError("does_not_read_back")
    return form


def _line(text: str) -> str:
    return " ".join(text.split())
