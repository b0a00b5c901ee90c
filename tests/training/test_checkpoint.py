"""Checkpoints: every bit comes back, only for the configuration that made them, and never out of a pickle."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from paperlib import VAE, Bernoulli, TrainConfig, load, save
from paperlib.runtime import files
from paperlib.runtime.files import ConfigMismatchError, DamagedFileError, read_tensors, write_tensors

CONFIG = TrainConfig(data_shape=(6,), hidden=(5,), latent_dim=2)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save(path, CONFIG.build(), CONFIG)
    return path


def own() -> VAE:
    encoder = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.BatchNorm1d(7), nn.Linear(7, 4))
    return VAE(encoder, nn.Sequential(nn.Linear(2, 6)), Bernoulli(), 2)


def same(first: VAE, second: VAE) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(
        one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]) for name in one
    )


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, likelihood="gaussian", scale=0.3),
        replace(CONFIG, data_shape=(1, 2, 3), hidden=()),
        replace(CONFIG, likelihood="continuous-bernoulli"),
        replace(CONFIG, likelihood="poisson"),
        replace(CONFIG, likelihood="discretized-logistic", scale=0.05),
    ],
    ids=["bernoulli", "gaussian", "images, no hidden layer", "continuous-bernoulli", "poisson", "logistic"],
)
def test_every_bit_comes_back(tmp_path: Path, config: TrainConfig) -> None:
    vae = config.build()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(torch.randn_like(parameter))  # other weights than the configuration's own
    save(tmp_path / "model.safetensors", vae, config)
    back = load(tmp_path / "model.safetensors", config)
    assert same(vae, back) and not same(back, config.build())
    assert not back.training
    assert not any(name.startswith(".") for name in map(str, tmp_path.iterdir()))


def test_a_path_may_be_a_string_in_a_folder_still_to_be_made(tmp_path: Path) -> None:
    path = str(tmp_path / "new" / "model.safetensors")
    save(path, CONFIG.build(), CONFIG)
    assert same(load(path), CONFIG.build())


def test_the_users_own_architecture_is_filled(tmp_path: Path) -> None:
    vae, empty = own(), own()
    save(tmp_path / "own.safetensors", vae, CONFIG)
    assert not same(vae, empty)
    assert load(tmp_path / "own.safetensors", CONFIG, empty) is empty
    assert same(vae, empty)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "own.safetensors", own(), CONFIG)
    with pytest.raises(DamagedFileError, match=r"own\.safetensors do not fit"):
        load(tmp_path / "own.safetensors")


def test_an_own_architecture_is_filled_and_plain_load_says_how(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save(path, own(), CONFIG)
    with pytest.raises(DamagedFileError, match=r"do not fit the mlp_vae.*load\(path, vae=my_vae\)"):
        load(path)
    assert load(path, vae=own()).encoder[2].running_mean is not None  # type: ignore[index]
    other = VAE(nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 4)), nn.Sequential(nn.Linear(2, 6)), Bernoulli(), 2)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(DamagedFileError, match=r"do not fit the model given as vae; build it as it was"):
        load(path, vae=other)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items()), "filled in part"


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / name, CONFIG.build(), CONFIG)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    save(tmp_path / "b", CONFIG.build(), replace(CONFIG, eps=0.2))
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("field", [{"eps": 0.2}, {"seed": 3}, {"dataset": "mnist5k"}])
def test_another_configuration_is_refused_and_the_differing_field_shown(saved: Path, field: dict[str, object]) -> None:
    ((name, value),) = field.items()
    with pytest.raises(ConfigMismatchError) as caught:
        load(saved, replace(CONFIG, **field))  # type: ignore[arg-type]
    message = str(caught.value)
    assert f"{name}: found {getattr(CONFIG, name)!r}, wanted {value!r}" in message and str(saved) in message
    assert "kappa" not in message


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    path = tmp_path / "model.safetensors"
    torch.save({"weights": CONFIG.build().state_dict(), "bomb": Bomb()}, path)
    with pytest.raises(DamagedFileError, match=r"model\.safetensors is damaged or not written by this library"):
        load(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1, -50])
def test_a_truncated_file_is_refused(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(DamagedFileError, match=r"model\.safetensors"):
        load(saved)


def test_a_longer_file_is_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(DamagedFileError):
        load(saved)


@pytest.mark.parametrize(
    "header", [{}, {"config": {}}, {"config": {**CONFIG.as_dict(), "eps": -1.0}}, {"config": None}, {"config": [1]}]
)
def test_a_file_without_a_valid_configuration_is_refused(tmp_path: Path, header: dict[str, object]) -> None:
    path = tmp_path / "other.safetensors"
    write_tensors(path, CONFIG.build().state_dict(), header)
    with pytest.raises(DamagedFileError, match=r"other\.safetensors"):
        load(path)


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "foreign.safetensors"
    save_file(CONFIG.build().state_dict(), path)
    with pytest.raises(DamagedFileError, match=r"foreign\.safetensors"):
        load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        load(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_save_leaves_the_old_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def interrupted(_: object, path: Path, *__: object) -> None:
        Path(path).write_bytes(b"half a file")
        raise error

    old = saved.read_bytes()
    monkeypatch.setattr(files, "save_file", interrupted)
    with pytest.raises(error):
        save(saved, own(), CONFIG)
    assert saved.read_bytes() == old
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_any_named_tensors_and_header_come_back(tmp_path: Path) -> None:
    tensors = {
        "transposed": torch.arange(6.0).view(2, 3).T,
        "bytes": torch.tensor([0, 255], dtype=torch.uint8),
        "scalar": torch.tensor(torch.nan, dtype=torch.float64),
        "with gradient": torch.ones(2, requires_grad=True),
    }
    shared = torch.zeros(4)
    tensors |= {"part": shared[:2], "whole": shared}
    write_tensors(tmp_path / "t.safetensors", tensors, {"config": {"a": [1, 2.5, None, "x"]}})
    back, header = read_tensors(tmp_path / "t.safetensors")
    assert header == {"config": {"a": [1, 2.5, None, "x"]}}
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(back[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)
