"""The generation probe: exact code lengths on sources of known entropy, samples, resumption, and what it refuses."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from token_sources import SOURCES, Source

from gsq.config.probe import SIZES, ProbeSize, code_sizes, packs, probe_parameters
from gsq.probe.fitting import Fitted, bits_each, fit, split
from gsq.probe.model import Prior
from gsq.probe.tokens import pack, unpack

TINY = ProbeSize(32, 1, 1, 16, 1, 1, positions=64, steps=16, learning_rate=0.01)


def fitted(source: Source, size: ProbeSize, values: int, codes: int, positions: int) -> tuple[Prior, torch.Tensor]:
    """A trained prior, and the code lengths of 128 fresh images [bits a position]."""
    random = torch.Generator().manual_seed(1)
    train, selection, held_out = source.draw(2048, random), source.draw(32, random), source.draw(128, random)
    torch.manual_seed(0)
    prior = Prior(size, (values,) * codes, positions)
    prior.start_from_counts(train)
    fit(prior, train, selection, held_out, 0)
    return prior, bits_each(prior, held_out) / positions


SMALL = ProbeSize(32, 1, 1, 32, 1, 1, positions=256, steps=120, learning_rate=0.01)
DEEP = ProbeSize(64, 2, 2, 32, 1, 1, positions=256, steps=300, learning_rate=0.004)


@pytest.mark.parametrize(
    ("name", "values", "codes", "size"),
    [("independent", 16, 2, SMALL), ("coupled", 16, 2, SMALL), ("markov", 8, 1, DEEP), ("copied", 16, 1, DEEP)],
)
def test_the_code_length_is_the_entropy_of_the_source(name: str, values: int, codes: int, size: ProbeSize) -> None:
    source = SOURCES[name](values, codes, 8)
    _, bits = fitted(source, size, values, codes, 8)
    noise = float(bits.std()) / math.sqrt(len(bits))
    assert float(bits.mean()) <= 1.02 * source.bits + 3 * noise
    assert float(bits.mean()) >= source.bits - 3 * noise


def test_probabilities_of_all_images_add_up_to_one() -> None:
    torch.manual_seed(3)
    prior = Prior(TINY, (3, 2), 2)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    every = torch.cartesian_prod(*[torch.arange(n) for n in (3, 2, 3, 2)]).view(-1, 2, 2)
    assert float(torch.exp2(-prior.bits(every)).sum()) == pytest.approx(1, abs=1e-5)


def test_tiles_of_the_softmax_change_neither_loss_nor_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    prior = Prior(TINY, (50, 7), 4)
    torch.nn.init.normal_(prior.weight)
    codes = torch.stack([torch.randint(50, (6, 4)), torch.randint(7, (6, 4))], 2)
    prior(codes).backward()
    whole = {name: parameter.grad.clone() for name, parameter in prior.named_parameters() if parameter.grad is not None}
    hidden = prior.hidden(codes)
    heads = zip(prior.weight.split([50, 7]), prior.bias.split([50, 7]), strict=True)
    parts = [hidden[:, k] @ weight.T + bias for k, (weight, bias) in enumerate(heads)]
    plain = sum(
        torch.nn.functional.cross_entropy(p, codes.view(-1, 2)[:, k], reduction="sum") for k, p in enumerate(parts)
    )
    prior.zero_grad()
    plain.backward()  # type: ignore[union-attr]
    for name, parameter in prior.named_parameters():
        torch.testing.assert_close(whole[name], parameter.grad, atol=1e-4, rtol=1e-4)
    monkeypatch.setattr("gsq.probe.model.TILE", 100)
    prior.zero_grad()
    total = prior(codes)
    total.backward()
    assert float(total.detach()) == pytest.approx(float(plain.detach()), rel=1e-6)
    assert float(prior.bits(codes).sum()) * math.log(2) == pytest.approx(float(plain.detach()), rel=1e-6)
    for name, parameter in prior.named_parameters():
        torch.testing.assert_close(whole[name], parameter.grad, atol=1e-4, rtol=1e-4)


def test_logits_of_a_large_codebook_are_never_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[int] = []
    real = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *a, **k: (shapes.append((out := real(*a, **k)).numel()), out)[1])
    prior = Prior(TINY, (1 << 18,), 64)
    codes = torch.randint(1 << 18, (2, 64, 1))
    prior(codes).backward()
    prior.bits(codes)
    prior.sample(torch.rand(65, 1, 1, dtype=torch.float64))
    assert shapes and max(shapes) <= 1 << 23 < 2 * 64 * (1 << 18)


def test_samples_follow_the_learned_distribution() -> None:
    torch.manual_seed(3)
    prior = Prior(TINY, (3, 2), 2)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    drawn = prior.sample(torch.rand(20_000, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    every = torch.cartesian_prod(*[torch.arange(n) for n in (3, 2, 3, 2)])
    wanted = torch.exp2(-prior.bits(every.view(-1, 2, 2)))
    found = (drawn.view(-1, 1, 4) == every).all(2).double().mean(0)
    assert float((found - wanted).abs().max()) < 4 * math.sqrt(0.25 / 20_000)


def test_permuted_codes_have_equally_long_codes() -> None:
    source = SOURCES["coupled"](16, 2, 8)
    maps = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(k)) for k in range(2)])

    def permuted(count: int, random: torch.Generator) -> torch.Tensor:
        drawn = source.draw(count, random)
        return torch.stack([maps[k][drawn[:, :, k]] for k in range(2)], 2)

    other = Source(permuted, source.bits)
    size = dataclasses.replace(TINY, steps=100, positions=256)
    bits = [float(fitted(one, size, 16, 2, 8)[1].mean()) for one in (source, other)]
    assert bits[0] == pytest.approx(bits[1], rel=0.02)


@pytest.mark.parametrize("sizes", [(1024,) * 4, (2,) * 16, (8, 8, 5, 5, 5), (1 << 18,), (4096, 3, 3)])
def test_indices_are_packed_into_codes_and_back(sizes: tuple[int, ...]) -> None:
    indices = torch.stack([torch.randint(size, (3, 2, 5)) for size in sizes], 1)
    codes = pack(indices, sizes)
    assert codes.shape == (3, 10, len(packs(sizes)))
    assert all(int(codes[..., c].max()) < size for c, size in enumerate(code_sizes(sizes)))
    assert torch.equal(unpack(codes, sizes, 2), indices)


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_plan_counts_the_parameters_that_the_probe_has(name: str) -> None:
    prior = Prior(SIZES[name], (1024, 8), 16)
    assert sum(parameter.numel() for parameter in prior.parameters()) == probe_parameters(SIZES[name], 16, (1024, 8))


def test_an_interrupted_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(1)
    draw = SOURCES["markov"](8, 2, 8).draw
    train, selection, held_out = draw(64, random), draw(16, random), draw(16, random)

    def run(stop: int = 0, checkpoint: Path | None = None) -> tuple[Fitted, torch.Tensor]:
        steps = [0]

        def tick(error: BaseException | None) -> None:
            steps[0] += 1
            if stop and steps[0] > stop:
                raise InterruptedError

        torch.manual_seed(0)
        prior = Prior(TINY, (8, 8), 8)
        found = fit(prior, train, selection, held_out, 0, checkpoint=checkpoint, tick=tick)
        return found, prior.bits(held_out)

    whole, bits = run()
    with pytest.raises(InterruptedError):
        run(stop=9, checkpoint=tmp_path / "probe.pt")
    found, again = run(checkpoint=tmp_path / "probe.pt")
    assert torch.equal(bits, again)
    assert (whole.selection, whole.held_out, whole.kept) == (found.selection, found.held_out, found.kept)


def test_converged_and_overfitted_curves_are_told() -> None:
    level = [9.0, 8, 7, 6, 5.02, 5.01, 5.0, 5.0]
    falling = [9.0, 8, 7, 6, 5, 4, 3, 2]
    rising = [9.0, 8, 7, 6, 5, 5.5, 6, 6.5]
    assert Fitted(level, level).converged and not Fitted(level, level).overfits
    assert not Fitted(falling, falling).converged
    assert Fitted(rising, rising).overfits and Fitted(rising, rising).converged


def test_the_selection_is_not_trained_on() -> None:
    train = torch.arange(50).view(50, 1, 1)
    kept, chosen = split(train, train + 1000, 0)
    assert len(chosen) == 5 and len(kept) == 90
    assert not set(chosen.flatten().tolist()) & {int(value) % 1000 for value in kept.flatten()}
