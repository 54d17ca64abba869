"""Writes a template of ``gsq new`` to a file of a user's, with its test."""

from __future__ import annotations

from pathlib import Path

from gsq.errors import UserError, choose
from gsq.files import write_text

KINDS = {
    "quantizer": ("Mine", "quantizer.kind"),
    "model": ("Mine", "model.kind"),
    "discriminator": ("Mine", "discriminator.kind"),
    "loss": ("Mine", "loss.perceptual"),
    "data": ("mine", "data.kind"),
    "features": ("mine", "evaluation.features"),
    "metric": ("Mine", "evaluation.metrics"),
}
TEST = '''"""The checks of gsq, on {part}. Run them with pytest."""

from gsq.runs.part_checks import check_part


def test_it_does_what_gsq_asks_of_a_{kind}() -> None:
    failed = [check for check in check_part("{part}", "{kind}") if not check.passed]
    assert not failed, failed
'''

PROGRAM_TEST = '''"""{part} as gsq runs it: to its end, and killed and resumed. Run it with pytest."""

from pathlib import Path

from gsq.runs.program_checks import check_program


def test_it_resumes_to_the_same_metrics(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be, or not to be, that is the question: " * 20)
    keys = {{"text": str(text), "width": 4, "steps": 8, "seed": 0}}
    failed = [check for check in check_program("{part}", keys) if not check.passed]
    assert not failed, failed
'''


def write_part(kind: str, file: Path) -> tuple[list[Path], str, str]:
    """Write the template of ``kind`` to ``file`` and its test beside it.

    kind: one of KINDS, or program. Returns the files, the part's import path, and the setting of a sweep that uses it
    (of a program its key ``program``). Raises UserError for an unknown
    kind, a name that Python cannot import, or a file that is there already.
    """
    choose("gsq new", kind, [*KINDS, "program"])
    if file.suffix != ".py" or not file.stem.isidentifier():
        raise UserError(f"{file}: Python could not import it; give a name such as my_{kind}.py")
    test = file.with_name(f"test_{file.name}")
    for path in (file, test):
        if path.exists():
            raise UserError(f"{path}: is there already; give another name, or remove it")
    name, key = KINDS.get(kind, ("train", "program"))
    part = f"{file.stem}:{name}"
    text = Path(__file__).with_name(f"{kind}.py").read_text().replace(f"gsq.templates.{kind}:{name}", part)
    try:
        write_text(file, text)
        write_text(test, (PROGRAM_TEST if kind == "program" else TEST).format(part=part, kind=kind, module=file.stem))
    except OSError as error:
        raise UserError(f"{error.filename or file}: cannot be written: {error.strerror}") from None
    return [file, test], part, f'{key}: ["{part}"]' if kind == "metric" else f'{key}: "{part}"'
