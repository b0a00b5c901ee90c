"""Rows per example: complete, in float64, ordered certified <= attacked <= clean, and refused when they are not."""

import copy
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from paperlib import (
    IBP,
    VAE,
    Auto,
    BranchAndBound,
    Crown,
    CrownIBP,
    LinfBall,
    TrainConfig,
    certify,
    conv_vae,
    elbo,
    elbo_bounds,
    load_dataset,
    mlp_vae,
    train,
)
from paperlib.certificates import crown, evaluation, refinement, unit_bounds
from paperlib.certificates.evaluation import (
    SandwichViolationError,
    check_sandwich,
    chunk_size,
    evaluation_noise,
    summary,
)
from paperlib.certificates.method import Method
from paperlib.data.datasets import Dataset
from paperlib.training.loop import TrainResult

COLUMNS = [
    "index",
    "draw",
    "eps",
    "clean",
    "log_likelihood",
    "kl",
    "attacked",
    "attacked_log_likelihood",
    "attacked_kl",
    "certified",
]
COUNT, LATENT = 7, 3
BALL = LinfBall(0.1)


@pytest.fixture(scope="session")
def embedded() -> dict[str, Dataset]:
    return {split: load_dataset("mnist5k", split) for split in ("train", "test")}


@pytest.fixture(scope="session")
def trained(embedded: dict[str, Dataset]) -> TrainResult:
    config = TrainConfig(dataset="mnist5k", hidden=(32,), latent_dim=4, steps=150, batch_size=64)
    return train(config, data=embedded["train"], device="cpu")


def inputs(draws: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(COUNT, 12, generator=generator), torch.randn(draws, COUNT, LATENT, generator=generator)


def model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return mlp_vae((12,), (8,), LATENT)


def test_rows_have_the_promised_columns_and_types() -> None:
    x, noise = inputs()
    rows = certify(model(), x, BALL, noise[0], attack={"steps": 2})
    assert list(rows.columns) == COLUMNS
    assert [rows[name].dtype for name in COLUMNS] == [np.dtype("int64")] * 2 + [np.dtype("float64")] * 8
    assert rows["index"].tolist() == list(range(COUNT))
    assert (rows["eps"] == 0.1).all() and (rows["draw"] == 0).all()


@pytest.mark.parametrize("target", ["perturbed", "clean"])
def test_each_value_is_the_float64_value_of_its_name(target: Any) -> None:
    x, noise = inputs()
    vae = model()
    rows = certify(vae, x, BALL, noise[0], attack={"steps": 3}, target=target)
    double = vae.in_float64()
    with torch.no_grad():
        clean = elbo(double, x.double(), noise[0].double())
        bounds = elbo_bounds(double, x.double(), BALL, noise[0].double(), target=target)
    np.testing.assert_allclose(rows["clean"], clean, rtol=0, atol=1e-12)
    np.testing.assert_allclose(rows["certified"], bounds.lower, rtol=0, atol=1e-11)
    np.testing.assert_allclose(rows["clean"], rows["log_likelihood"] - rows["kl"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        rows["attacked"], rows["attacked_log_likelihood"] - rows["attacked_kl"], rtol=0, atol=1e-12
    )
    assert (rows["certified"] < rows["attacked"]).all() and (rows["attacked"] < rows["clean"]).all()


HOW: list[dict[str, Any]] = [
    {"method": "crown-ibp"},
    {"method": CrownIBP(alpha_steps=2)},
    {"method": Crown(alpha_steps=2)},
    {"method": Auto(budget=6)},
    {"sound": True},
    {"method": "crown", "sound": True},
]


@pytest.mark.parametrize("target", ["perturbed", "clean"])
@pytest.mark.parametrize("how", HOW, ids=str)
def test_how_to_certify_is_that_of_elbo_bounds(how: dict[str, Any], target: Any) -> None:
    x, noise = inputs(draws=2)
    vae = model() if how.get("sound") else model().double()
    rows = certify(vae, x, BALL, noise, target=target, memory=1e-5, **how)
    parameter = next(vae.parameters())
    with torch.no_grad():
        lower = [
            elbo_bounds(vae, x.to(parameter), BALL, one.to(parameter), target=target, **how).lower for one in noise
        ]
        plain = [elbo_bounds(vae.in_float64(), x.double(), BALL, one.double(), target=target).lower for one in noise]
    np.testing.assert_allclose(rows["certified"], torch.cat(lower), rtol=0, atol=1e-9)
    assert (np.abs(rows["certified"] - torch.cat(plain).numpy()) > 1e-7).all(), "the same as without these words"


def test_a_misspelt_word_is_an_error_that_names_it() -> None:
    x, noise = inputs()
    with pytest.raises(TypeError, match="memmory"):
        certify(model(), x, BALL, noise[0], method="crown", memmory=3)
    with pytest.raises(ValueError, match="unknown method 'crwon'; use one of"):
        certify(model(), x, BALL, noise[0], method="crwon")


def test_no_method_certifies_less_than_intervals_and_no_alpha_steps_less_than_none(
    trained: TrainResult, embedded: dict[str, Dataset]
) -> None:
    test = embedded["test"]
    noise = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))

    def certified(method: Method, **more: Any) -> pd.DataFrame:
        return certify(trained.vae, test.x[:10], test.ball(0.1), noise, method=method, **more)

    rows = certified(Crown(alpha_steps=5), attack={"steps": 10})
    frames = [certified(IBP()), certified(CrownIBP()), certified(Crown()), rows]
    columns = [frame["certified"] for frame in frames]
    assert all((columns[0] <= column).all() for column in columns)
    assert (columns[2] <= columns[3]).all()
    assert (certified(CrownIBP(alpha_steps=5))["certified"] >= columns[1]).all()
    assert (columns[3] <= rows["attacked"]).all()
    means = [column.mean() for column in columns]
    assert means[0] + 1 < means[1] and means[1] <= means[2], "on a trained model the tighter methods pay"


def test_exact_rows_are_the_worst_case_to_within_the_tolerance() -> None:
    torch.manual_seed(0)
    vae, x, noise = mlp_vae((2,), (8,), 2), torch.rand(3, 2), torch.randn(3, 2)
    rows = certify(vae, x, BALL, noise, attack={"steps": 20}, method=BranchAndBound(tol=1e-2))
    lower = elbo_bounds(vae.in_float64(), x.double(), BALL, noise.double(), BranchAndBound(tol=1e-2)).lower
    np.testing.assert_allclose(rows["certified"], lower, rtol=0, atol=1e-11)
    lower_end, upper_end = BALL.box(x.double())
    side = torch.linspace(0, 1, 21, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)[:, None] * (upper_end - lower_end) + lower_end
    with torch.no_grad():
        least = torch.stack([elbo(vae.in_float64(), point, noise.double()) for point in grid]).amin(0).numpy()
    assert (rows["certified"] <= least).all() and (
        rows["certified"] >= np.minimum(least, rows["attacked"]) - 1e-2
    ).all()
    assert (certify(vae, x, BALL, noise)["certified"] < rows["certified"]).all()


@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_sound_rows_hold_for_the_model_as_it_is_deployed(method: str) -> None:
    x, noise = inputs()
    vae = torch.nn.Module.train(model())
    rows = certify(vae, x, LinfBall(1e-6), noise[0], attack={"steps": 2}, method=method, sound=True)
    plain = certify(vae, x, LinfBall(1e-6), noise[0], method=method)
    assert vae.training and next(vae.parameters()).dtype == torch.float32
    assert rows["certified"].dtype == np.dtype("float64")
    assert (rows["certified"] < plain["certified"]).all()
    assert (plain["certified"] - rows["certified"]).max() < 1e-3
    box = LinfBall(1e-6).box(x)
    with torch.no_grad():
        for _ in range(50):
            value = elbo(vae, torch.where(torch.rand(x.shape) < 0.5, *box), noise[0])
            assert (rows["certified"].to_numpy() <= value.double().numpy()).all()


def test_several_draws_are_the_single_draws_one_after_the_other() -> None:
    x, noise = inputs(draws=3)
    together = certify(model(), x, BALL, noise, attack={"steps": 2})
    assert together["draw"].tolist() == [d for d in range(3) for _ in range(COUNT)]
    assert together["index"].tolist() == list(range(COUNT)) * 3
    singly = [certify(model(), x, BALL, one, attack={"steps": 2}).assign(draw=d) for d, one in enumerate(noise)]
    pd.testing.assert_frame_equal(together, pd.concat(singly, ignore_index=True))
    assert together.groupby("index")["certified"].nunique().min() == 3


def in_chunks_of(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "chunk_size", lambda *_: size)


@pytest.mark.parametrize("size", [1, 3, COUNT, 100])
@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_the_size_of_chunks_changes_no_row(method: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, noise = inputs(draws=2)
    whole = certify(model(), x, BALL, noise, attack={"steps": 3}, method=method)
    in_chunks_of(size, monkeypatch)
    parts = certify(model(), x, BALL, noise, attack={"steps": 3}, method=method)
    pd.testing.assert_frame_equal(parts, whole, check_exact=False, rtol=0, atol=1e-9)


def test_random_starts_follow_the_generator_and_differ_from_chunk_to_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    x, noise = (part[..., :1, :].repeat_interleave(COUNT, -2) for part in inputs())
    in_chunks_of(3, monkeypatch)

    def attacked(seed: int) -> list[float]:
        attack = {"steps": 1, "restarts": 2, "generator": torch.Generator().manual_seed(seed)}
        return list(certify(model(), x, LinfBall(0.5), noise, attack=attack)["attacked"])

    starts: set[bytes] = set()
    real = LinfBall.sample

    def sample(ball: LinfBall, x: Tensor, generator: torch.Generator) -> Tensor:
        start = real(ball, x, generator)
        starts.add(start[0].numpy().tobytes())
        return start

    monkeypatch.setattr(LinfBall, "sample", sample)
    assert attacked(0) == attacked(0)
    assert len(starts) == 3, "three chunks, the same in both calls"
    attacked(1)
    assert len(starts) == 6


class Peak(TorchDispatchMode):
    """`bytes`: the most that the tensors made in this block have held at once."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.given = {tensor.untyped_storage()._cdata for tensor in given}
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.given:
                storage = tensor.untyped_storage()
                self.held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.held = {key: (ref, size) for key, (ref, size) in self.held.items() if not ref.expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self.held.values()))
        return made


def peak(vae: VAE, x: Tensor, memory: float, **how: Any) -> int:
    noise = torch.randn(len(x), vae.latent_dim)
    with Peak(x, noise) as held:
        certify(vae, x, LinfBall(0.01), noise, memory=memory, **how)
    return held.bytes


SMALL = 2e-3  # GiB: some images of the network below at a time


@pytest.mark.parametrize("how", [{"attack": {"steps": 2}}, {"method": "crown-ibp"}], ids=str)
def test_memory_does_not_grow_with_the_number_of_images(how: dict[str, Any]) -> None:
    vae = mlp_vae((784,), (16,), 4)
    chunk = chunk_size(vae, torch.rand(1, 784), torch.randn(1, 4), how.get("method", "ibp"), SMALL)
    assert 1 < chunk < 20
    x = torch.rand(8 * chunk, 784)
    once = peak(vae, x[:chunk].clone(), SMALL, **how)
    assert peak(vae, x, SMALL, **how) == once
    fixed = peak(vae, x[:1].clone(), SMALL, **how)  # with the model's copy in float64
    assert peak(vae, x, 8 * SMALL, **how) - fixed > 7 * (once - fixed), "a larger budget is used"


NETWORKS = {"mlp": lambda: mlp_vae((196,), (8, 8), 4), "conv": lambda: conv_vae((1, 8, 8), (4, 8), 4)}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    "how",
    [
        {"attack": {"steps": 2}},
        {"sound": True},
        {"method": CrownIBP(alpha_steps=2)},
        {"method": CrownIBP(alpha_steps=2), "sound": True},
        {"method": Crown(alpha_steps=1), "attack": {"steps": 2}},
        {"method": "crown", "sound": True},
    ],
    ids=str,
)
def test_intermediate_results_keep_to_the_budget(
    network: str, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refinement, "LOST", -1.0)  # the most that is held: units have passes of their own everywhere
    for module in (crown, unit_bounds):
        monkeypatch.setattr(module, "BYTES", 1)  # one unit at a time: what grows with the examples
    vae = NETWORKS[network]()
    x = torch.rand(16, 196) if network == "mlp" else torch.rand(16, 1, 8, 8)
    arguments = vae, x, torch.randn(16, vae.latent_dim), how.get("method", "ibp")
    budgets = (2.0**-power for power in range(20, 0, -1))
    memory, size = next((b, size) for b in budgets if (size := chunk_size(*arguments, b)) >= 8)
    assert size <= 16
    # one example's peak holds the weights in all the forms that the method makes of them
    rest = peak(vae, x[:size], memory, **how) - peak(vae, x[:1], memory, **how)
    assert 1 / 8 < rest / (memory * 2**30) * size / (size - 1) <= 1


@pytest.mark.parametrize("alpha_steps", [0, 2])
def test_passes_of_many_units_at_a_time_hold_no_more_than_is_said(
    alpha_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refinement, "LOST", -1.0)
    vae, x, method = mlp_vae((100,), (16, 16), 4), torch.rand(1, 100), Crown(alpha_steps)
    sizes = [100, *[16] * 4, 8, 4, *[16] * 4, 100]
    held = []
    for size in (1, 1 << 19):
        for module in (crown, unit_bounds):
            monkeypatch.setattr(module, "BYTES", size)
        held.append((peak(vae, x, 1.0, method=method), 8 * method.memory(vae, sizes).fixed))
    (one, said_of_one), (many, said_of_many) = held
    assert 1 / 30 < (many - one) / (said_of_many - said_of_one) <= 1


def test_chunks_follow_the_budget() -> None:
    vae, x, noise = mlp_vae(), torch.rand(1, 784), torch.randn(1, 20)
    sizes = {
        method: [chunk_size(vae, x, noise, method, memory) for memory in (1e-9, 0.02, 0.04, 0.08, 1.0, 100.0)]
        for method in ("ibp", "crown-ibp", "crown", "best")
    }
    for method, grown in sizes.items():
        assert grown[0] == 1 and grown == sorted(grown)
        assert grown[-1] == grown[-2] == (100 if method in ("crown", "best") else 500), "at the size of the experiments"
    for grown in (sizes["ibp"], sizes["crown-ibp"]):
        assert grown[2] == pytest.approx(2 * grown[1], abs=1) and grown[3] == pytest.approx(2 * grown[2], abs=1)
    assert all(a > b > c for a, b, c in list(zip(sizes["ibp"], sizes["crown-ibp"], sizes["crown"], strict=True))[1:4])
    assert sizes["crown"] == sizes["best"]
    wide = mlp_vae(hidden=(5_000,))
    assert chunk_size(wide, x, noise, "ibp", 0.04) < sizes["ibp"][2] / 4
    assert chunk_size(wide, x, noise, "crown", 1.0) < 100


@pytest.mark.parametrize("memory", [0.0, -1.0, float("nan")])
def test_a_budget_that_is_not_positive_is_refused(memory: float) -> None:
    x, noise = inputs()
    with pytest.raises(ValueError, match="memory must be positive"):
        certify(model(), x, BALL, noise[0], memory=memory)


@pytest.mark.parametrize("memory", [1e-9, 1.0])
def test_noise_for_another_number_of_examples_is_refused(memory: float) -> None:
    x, noise = inputs()
    with pytest.raises(ValueError, match="noise"):
        certify(model(), x[:-1], BALL, noise[0], memory=memory)
    with pytest.raises(ValueError, match="no example"):
        certify(model(), x[:0], BALL, noise[0, :0], memory=memory)


def test_evaluation_noise_is_the_same_whatever_the_counts() -> None:
    whole = evaluation_noise(30, 5, draws=3, seed=7)
    assert whole.shape == (3, 30, 5)
    assert torch.equal(evaluation_noise(9, 5, draws=2, seed=7), whole[:2, :9])
    assert torch.equal(evaluation_noise(30, 5, seed=8), whole[1:2])
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_model_is_left_as_it_was(dtype: torch.dtype) -> None:
    x, noise = inputs()
    vae = model().to(dtype).train()
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    certify(vae, x, BALL, noise[0], attack={"steps": 2})
    assert vae.training
    assert all(parameter.grad is None for parameter in vae.parameters())
    after = vae.state_dict()
    assert all(after[name].dtype == dtype and torch.equal(after[name], tensor) for name, tensor in before.items())


def test_float32_and_float64_copies_give_the_same_rows() -> None:
    x, noise = inputs()
    rows = certify(model(), x, BALL, noise[0])
    pd.testing.assert_frame_equal(rows, certify(model().double(), x.double(), BALL, noise[0].double()))


def test_without_an_attack_its_columns_are_empty() -> None:
    x, noise = inputs()
    rows = certify(model(), x, BALL, noise[0])
    assert rows[["attacked", "attacked_log_likelihood", "attacked_kl"]].isna().all(axis=None)
    assert rows[["clean", "certified"]].notna().all(axis=None)
    assert rows["attacked"].dtype == np.dtype("float64")


def test_radius_zero_closes_the_sandwich() -> None:
    x, noise = inputs()
    rows = certify(model(), x, LinfBall(0.0), noise[0], attack={"steps": 1})
    np.testing.assert_allclose(rows["certified"], rows["clean"], rtol=0, atol=1e-12)
    assert (rows["attacked"] == rows["clean"]).all()


@pytest.mark.parametrize("eps", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("target", ["perturbed", "clean"])
def test_the_sandwich_holds_on_a_trained_model(
    trained: TrainResult, embedded: dict[str, Dataset], eps: float, target: Any
) -> None:
    test = embedded["test"]
    noise = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    rows = certify(trained.vae, test.x[:40], test.ball(eps), noise, attack={"steps": 10}, target=target)
    assert (rows["certified"] <= rows["attacked"]).all() and (rows["attacked"] <= rows["clean"]).all()
    assert (rows["clean"] - rows["certified"]).mean() > 1, "a bound that costs nothing bounds nothing"
    check_sandwich(rows)


def test_training_paid_on_held_out_digits(trained: TrainResult, embedded: dict[str, Dataset]) -> None:
    test = embedded["test"]
    noise = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(dataset="mnist5k", hidden=(32,), latent_dim=4)
    before, after = (
        certify(vae, test.x[:40], test.ball(0.1), noise)["certified"].mean() for vae in (config.build(), trained.vae)
    )
    assert after > before + 50


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_the_gpu_gives_the_rows_of_the_cpu() -> None:
    x, noise = inputs()
    there = certify(model().cuda(), x.cuda(), BALL, noise[0].cuda(), attack={"steps": 2})
    pd.testing.assert_frame_equal(there, certify(model(), x, BALL, noise[0], attack={"steps": 2}), rtol=0, atol=1e-9)


GOOD = {"certified": -120.0, "attacked": -110.0, "clean": -100.0}


def planted(**values: float) -> pd.DataFrame:
    """Five good rows, 40 to 44, but for the given values in row 42."""
    rows = pd.DataFrame([{"index": 40 + i, **GOOD} for i in range(5)])
    for name, value in values.items():
        rows.loc[2, name] = value
    return rows


@pytest.mark.parametrize(
    "values",
    [
        {"certified": -109.0},
        {"attacked": -99.0},
        {"certified": -90.0, "attacked": -95.0},
        {"attacked": np.nan, "certified": -99.0},
        {"certified": -110.0 + 1e-6},
        {"certified": np.nan},
        {"clean": np.nan},
        {"clean": np.nan, "attacked": np.nan},
        {"certified": -np.inf},
        {"attacked": -np.inf, "certified": -np.inf},
        {"clean": np.inf},
        {"clean": np.inf, "attacked": np.inf},
        {"certified": np.inf},
    ],
    ids=str,
)
def test_a_planted_violation_is_refused_and_its_row_named(values: dict[str, float]) -> None:
    with pytest.raises(SandwichViolationError, match=r"(?s)1 of 5 rows.*index\s+42"):
        check_sandwich(planted(**values))


@pytest.mark.parametrize(
    "values",
    [{}, {"attacked": np.nan}, {"certified": -110.0}, {"certified": -110.0 + 1e-11}, {"attacked": -100.0 + 1e-11}],
    ids=str,
)
def test_rows_in_order_to_within_rounding_pass(values: dict[str, float]) -> None:
    check_sandwich(planted(**values))


class Unsound(IBP):
    """Certifies that no ELBO is negative."""

    def lower(self, vae: VAE, x: Tensor, *_: Any) -> Tensor:
        return torch.zeros(len(x), dtype=x.dtype)


def test_certify_itself_refuses_an_unsound_bound() -> None:
    x, noise = inputs()
    with pytest.raises(SandwichViolationError, match=f"{COUNT} of {COUNT} rows"):
        certify(model(), x, BALL, noise[0], method=Unsound())


def test_a_summary_averages_draws_first_and_never_rounds_a_certificate_up() -> None:
    # Image 0 has two draws, whose mean counts once.
    rows = pd.DataFrame({"index": [0, 0, 1], **{name: [value] * 3 for name, value in GOOD.items()}})
    rows["log_likelihood"], rows["kl"] = -75.0, 25.0
    rows["certified"] = [-123.02, -123.06, -123.04]
    assert summary(rows).splitlines() == [
        "clean      -100.0 ± 0.0 nats  (log-likelihood -75.0, KL 25.0)",
        "attacked   -110.0 ± 0.0 nats",
        "certified  -123.1 ± 0.0 nats",
    ]
    rows["attacked"] = np.nan
    rows["certified"] = [-122.0, -124.0, -125.0]
    assert summary(rows).splitlines() == [
        "clean      -100.0 ± 0.0 nats  (log-likelihood -75.0, KL 25.0)",
        "certified  -124.0 ± 1.0 nats",
    ]


@pytest.mark.parametrize(("kl", "collapsed"), [(0.0, True), (0.19, True), (0.499, True), (0.5, False), (25.0, False)])
def test_a_summary_warns_of_a_collapsed_posterior(kl: float, collapsed: bool) -> None:
    rows = pd.DataFrame({"index": [0, 1], **{name: [value] * 2 for name, value in GOOD.items()}})
    rows["log_likelihood"], rows["kl"] = -75.0, [kl, kl]
    last = summary(rows).splitlines()[-1]
    assert last.startswith(f"warning: the posterior has collapsed: a KL of {kl:.2g} nats") == collapsed


@pytest.mark.parametrize("bad", [torch.nan, 1.2, -0.2])
def test_images_outside_the_range_are_refused(bad: float) -> None:
    x, noise = inputs()
    x[4, 2] = bad
    with pytest.raises(ValueError, match="finite"):
        certify(model(), x, BALL, noise[0])


def test_a_seed_promises_the_same_numbers_whatever_the_default_dtype_of_torch() -> None:
    config = TrainConfig(
        dataset="two-moons", data_shape=(2,), hidden=(8,), likelihood="gaussian", steps=3, batch_size=32
    )
    noise, weights = evaluation_noise(5, 3, draws=2), config.build().state_dict()
    trained = train(config).vae.state_dict()
    torch.set_default_dtype(torch.float64)
    try:
        again = evaluation_noise(5, 3, draws=2), config.build().state_dict(), train(config).vae.state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(again[0], noise) and again[0].dtype == noise.dtype
    for first, second in ((weights, again[1]), (trained, again[2])):
        assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
        assert all(tensor.dtype == torch.float32 for tensor in second.values())


def test_rows_are_the_same_in_inference_mode() -> None:
    vae, x, noise = mlp_vae((4,), (6,), 2), torch.rand(3, 4), torch.randn(3, 2)
    attack = {"steps": 3}
    expected = certify(vae, x, LinfBall(0.1), noise, attack=attack, method="crown")
    with torch.inference_mode():
        rows = certify(copy.deepcopy(vae), x.clone(), LinfBall(0.1), noise.clone(), attack=attack, method="crown")
    pd.testing.assert_frame_equal(rows, expected)
