"""Model cards, and tokenizers pushed to a hub and read from it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fresh_tokenizer import fresh
from model_hub import TOKEN, ModelHub, model_hub
from tiny_run import tiny
from typer.testing import CliRunner

from gsq import Tokenizer, UserError
from gsq.cli.main import app
from gsq.records.folder import RunFolder
from gsq.records.read import read_evaluations

NAME = "ada/tiny-gsq"


def card_of(text: str) -> tuple[dict[str, Any], str]:
    """Front matter and body."""
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    constants = pytest.importorskip("huggingface_hub").constants
    from huggingface_hub import file_download

    with model_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        for module in (constants, file_download):  # older clients have a copy there
            template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        for name in ("HF_HUB_CACHE", "HF_TOKEN_PATH"):
            monkeypatch.setattr(constants, name, str(tmp_path / "cache" / name))
        # Newer clients upload large files by a protocol of their own if they can, older ones by LFS alone.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


# The card


def test_the_card_of_a_run_has_its_numbers_protocol_data_and_config(
    run: RunFolder, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = tokenizer.save_pretrained(tmp_path / "tiny", license="cc-by-4.0", license_link="https://example.org/l")
    front, body = card_of((folder / "README.md").read_text())
    (result,) = [one for one in read_evaluations(run) if one["step"] == tokenizer.config.train.steps]
    assert front["library_name"] == "gsq"
    assert (front["license"], front["license_link"]) == ("cc-by-4.0", "https://example.org/l")
    ((entry,),) = [one["results"] for one in front["model-index"]]
    numbers = {metric["type"]: metric["value"] for metric in entry["metrics"]}
    assert numbers["rfid"] == pytest.approx(result["rfid"], rel=1e-5)
    assert numbers["psnr"] == pytest.approx(result["psnr_db"], rel=1e-5)
    assert entry["dataset"]["type"] == result["protocol_fields"]["data"]
    assert f"`{result['protocol']}`" in body
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", body, re.DOTALL)]
    assert blocks[0] == result["protocol_fields"]
    assert blocks[1]["train"]["steps"] == tokenizer.config.train.steps
    assert blocks[1]["optimizer"]["learning_rate"] == tokenizer.config.optimizer.learning_rate
    assert run.signature in body
    assert 'from_pretrained("tiny")' in body
    for file in ("README.md", "config.json"):
        assert str(run.path.parent) not in (folder / file).read_text() and "path" not in blocks[1]["data"]


def test_the_hub_client_reads_the_card(tokenizer: Tokenizer, tmp_path: Path) -> None:
    cards = pytest.importorskip("huggingface_hub").ModelCard
    folder = tokenizer.save_pretrained(tmp_path / "tiny")
    data = cards.load(folder / "README.md").data
    assert data.license == "unknown"
    assert {one.metric_type for one in data.eval_results} >= {"rfid", "psnr", "ssim"}


def test_a_saved_tokenizer_keeps_what_is_known_of_its_run(tokenizer: Tokenizer, tmp_path: Path) -> None:
    first = tokenizer.save_pretrained(tmp_path / "a" / "tiny")
    second = Tokenizer.from_pretrained(first).save_pretrained(tmp_path / "b" / "tiny")
    assert (second / "README.md").read_text() == (first / "README.md").read_text()
    unknown = fresh(tiny()).save_pretrained(tmp_path / "c" / "tiny")
    front, body = card_of((unknown / "README.md").read_text())
    assert "model-index" not in front and "Not measured" in body and "Not known" in body


def test_an_edited_card_is_not_replaced(tmp_path: Path) -> None:
    saved = fresh(tiny())
    folder = saved.save_pretrained(tmp_path / "tiny")
    saved.save_pretrained(folder, license="mit")
    (folder / "README.md").write_text("mine")
    for change in (folder / "config.json").unlink, lambda: None:
        with pytest.raises(UserError, match=r"README\.md .*gsq wrote"):
            saved.save_pretrained(folder)
        assert (folder / "README.md").read_text() == "mine"
        change()


@pytest.mark.parametrize(
    ("terms", "word"),
    [({"license": "Apache License"}, "apache-2.0"), ({"license_link": "https://example.org"}, "needs a license")],
)
def test_a_licence_that_is_none_is_refused_before_anything_is_written(
    terms: dict[str, str], word: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=word):
        fresh(tiny()).save_pretrained(tmp_path / "tiny", **terms)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


# The hub


def test_what_was_pushed_is_read_back(hub: ModelHub, tokenizer: Tokenizer) -> None:
    address = tokenizer.push_to_hub(NAME, private=True, license="apache-2.0", message="First")
    assert address == f"{hub.address}/{NAME}/commit/{hub.revision(NAME)}"
    assert hub.private[NAME] and hub.messages == ["First"]
    assert set(hub.files[NAME]) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    card = hub.files[NAME]["README.md"].decode()
    assert set(hub.validated) == {card}
    assert card_of(card)[0]["license"] == "apache-2.0" and f'from_pretrained("{NAME}")' in card
    again = Tokenizer.from_pretrained(NAME, device="cpu")
    assert again.fingerprint() == tokenizer.fingerprint()
    assert again.origin == tokenizer.origin


def test_pushing_again_replaces_its_own_files_alone(hub: ModelHub) -> None:
    fresh(tiny()).push_to_hub(NAME)
    hub.files[NAME]["samples.png"] = b"mine"
    second = fresh(tiny(groups=1), seed=1)
    second.push_to_hub(NAME, license="mit")
    assert hub.files[NAME]["samples.png"] == b"mine" and len(hub.messages) == 2
    assert Tokenizer.from_pretrained(NAME).fingerprint() == second.fingerprint()


def test_no_token(hub: ModelHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"no Hugging Face token.*hf auth login"):
        fresh(tiny()).push_to_hub(NAME)
    with pytest.raises(UserError, match=r"token .*Invalid credentials.*hf auth login"):
        fresh(tiny()).push_to_hub(NAME, token="hf_wrong")
    assert not hub.files
    fresh(tiny()).push_to_hub(NAME, token=TOKEN)


def test_a_refused_repository(hub: ModelHub) -> None:
    hub.refuse = 403, "You don't have the rights to create a model under the namespace ada"
    with pytest.raises(UserError, match=r"refuses it.*namespace ada.*allowed to write") as error:
        fresh(tiny()).push_to_hub(NAME)
    assert "\n" not in str(error.value) and not hub.files


def test_a_hub_that_cannot_be_reached(hub: ModelHub, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot be reached.*save_pretrained"):
        fresh(tiny()).push_to_hub(NAME)


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        fresh(tiny()).push_to_hub(NAME)


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "ada/", "ada/ti ny", "../x"])
def test_a_name_that_is_no_model_id(name: str) -> None:
    with pytest.raises(UserError, match="owner/name"):
        fresh(tiny()).push_to_hub(name)


# The command


def test_the_command(hub: ModelHub, run: RunFolder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    words = ["publish", str(run.path), "--license", "mit"]
    shown = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "tiny")])
    assert shown.exit_code == 0, shown.output
    assert Tokenizer.from_pretrained(tmp_path / "tiny").fingerprint() == tokenizer.fingerprint()
    pushed = CliRunner().invoke(app, [*words, NAME, "--json"])
    assert json.loads(pushed.stdout)["published"] == f"{hub.address}/{NAME}/commit/{hub.revision(NAME)}"
    for wrong in ([*words], [*words, NAME, "--output", str(tmp_path / "b")], [*words, "--output", "c", "--private"]):
        assert isinstance(CliRunner().invoke(app, wrong).exception, UserError)
