"""Many configurations, each trained and measured in a folder of its own, on all cores of a machine or of a cluster."""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd

from paperlib.certificates.evaluation import NOISE_SEED, certify, evaluation_noise
from paperlib.data.arrays import Dataset
from paperlib.data.datasets import checksum, data_origin, load_dataset, resolve
from paperlib.runtime.distributed import on_rank_zero
from paperlib.runtime.files import ConfigMismatchError, DamagedFileError, check_writable
from paperlib.runtime.parallel import TasksFailedError, cluster_outcomes, outcomes, training_jobs
from paperlib.runtime.rows import read_header, read_rows, write_rows
from paperlib.training.checkpoint import save
from paperlib.training.config import TrainConfig
from paperlib.training.loop import TrainResult, train

CERTIFIED_BY = ("ibp", "crown-ibp")  # methods that each trained model is certified by


def sweep(
    configs: Iterable[TrainConfig],
    folder: str | Path,
    *,
    images: int | None = None,
    jobs: int | None = None,
    cluster: bool = False,
    device: str = "auto",
) -> pd.DataFrame:
    """Train each configuration and measure it at its own eps on the test set: a row for each, in order, in nats.

    A configuration is kept in `folder/digest` as by `trained`, with its row in `measured.csv`; all rows are gathered in
    `folder/sweep.csv`, also when some failed. What is finished is not done again, what was stopped goes on.

    Args:
        images: the first of the test set; all of them if not given.
        jobs: processes at a time, by default as many as `training_jobs`; on a cluster, Ray decides.
        cluster: through Ray, see `cluster_outcomes`. All machines must see `folder`, and the data sets.
        device: of each process, as in `train`.

    Returns:
        The fields of the configuration with its digest; images; clean, log_likelihood, kl and the certificates ibp and
        crown_ibp, means over the images at one noise draw, with the standard errors clean_se, ibp_se and crown_ibp_se.

    Raises:
        TasksFailedError: some failed, after all others were done; names each with its error.
        ValueError: no configuration, fewer than one image or job, or `jobs` beside `cluster`.
        OSError: `folder` cannot be written; before any work.
        ModuleNotFoundError, ConnectionError: see `cluster_outcomes`.
    """
    folder = Path(folder).absolute()
    configs = [*dict.fromkeys(replace(config, dataset=resolve(config.dataset)) for config in configs)]
    if not configs or (images is not None and images < 1):
        raise ValueError(f"needs a configuration and an image, got {len(configs)} and images={images}")
    if cluster and jobs is not None:
        raise ValueError("on a cluster Ray decides how many processes run: leave jobs out")
    check_writable(folder / "sweep.csv")
    unfinished = [config for config in configs if _measured(config, folder, images) is None]
    unreachable: dict[str, ValueError] = {}
    for name in {config.dataset for config in unfinished}:
        try:
            load_dataset(name, "test")  # here, as processes would race for the download, and each tell of its failure
        except ValueError as error:
            unreachable[name] = error
    unfinished = [config for config in unfinished if config.dataset not in unreachable]

    task = partial(_train_and_measure, folder=folder, images=images, device=device)
    jobs = training_jobs() if jobs is None else jobs
    run = cluster_outcomes(task, unfinished, "sweep") if cluster else outcomes(task, unfinished, jobs, "sweep")
    with closing(run):
        errors = {outcome.item: outcome.error for outcome in run}

    measured = {config: _measured(config, folder, images) for config in configs}
    done = {config: row for config, row in measured.items() if row is not None}
    if done:
        rows = pd.concat(done.values(), ignore_index=True)
        settings = _settings(images) | {"models": [config.as_dict() for config in done]}
        origin = {"checksums": {config.dataset: checksum(config.dataset) for config in done}}
        seconds = sum(read_header(_file(config, folder))["seconds"] for config in done)
        write_rows(folder / "sweep.csv", rows, settings, origin, seconds)
    if len(done) < len(configs):
        unseen = f"its rows are not in {folder}: do all machines see that folder?"
        lines = [f"runs on {name}: {error}" for name, error in sorted(unreachable.items())]
        lines += [f"{_label(c, configs)}: {errors[c] or unseen}" for c in configs if c in errors and c not in done]
        failed = len(configs) - len(done)
        raise TasksFailedError(f"{failed} of {len(configs)} runs failed\n" + "\n".join(lines))
    return rows


def varying(configs: Iterable[TrainConfig]) -> list[str]:
    """The fields in which configurations differ."""
    fields = [asdict(config) for config in configs]
    return [name for name in fields[0] if any(other[name] != fields[0][name] for other in fields)]


def _label(config: TrainConfig, configs: Iterable[TrainConfig]) -> str:
    return " ".join([config.digest, *(f"{name}={getattr(config, name)}" for name in varying(configs))])


def trained(
    config: TrainConfig,
    folder: str | Path,
    device: str = "auto",
    data: Dataset | None = None,
    origin: dict[str, Any] | None = None,
) -> TrainResult:
    """`train` in a folder, which in the end holds `model.safetensors` and the rows of its history, `history.csv`.

    Args:
        data, origin: a data set of the user's own, and what the header of the history says of it.

    Raises what `train` raises.
    """
    result = train(config, device=device, folder=folder, data=data)
    history = Path(folder) / "history.csv"

    def write() -> None:
        save(Path(folder) / "model.safetensors", result.vae, config)
        if _read(history, config.as_dict()) is None:  # else the run was finished before this call
            write_rows(history, result.history, config.as_dict(), origin or data_origin(config.dataset), result.seconds)

    on_rank_zero(write)
    return result


def _train_and_measure(config: TrainConfig, folder: Path, images: int | None, device: str) -> None:
    start = perf_counter()
    vae = trained(config, folder / config.digest, device).vae
    test = load_dataset(config.dataset, "test")
    x = test.x[:images]
    noise = evaluation_noise(len(x), vae.latent_dim, seed=NOISE_SEED)
    ball = test.ball(config.eps, config.threat)
    certified = {method: certify(vae, x, ball, noise, method=method) for method in CERTIFIED_BY}
    clean = certified["ibp"]
    fields = {k: " ".join(map(str, v)) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
    row = {"digest": config.digest, **fields, "images": len(x), "clean": clean["clean"].mean()}
    row |= {"clean_se": clean["clean"].sem(), **clean[["log_likelihood", "kl"]].mean()}
    for method, rows in certified.items():
        name = method.replace("-", "_")
        row |= {name: rows["certified"].mean(), f"{name}_se": rows["certified"].sem()}
    path, settings = _file(config, folder), _settings(images) | {"model": config.as_dict()}
    write_rows(path, pd.DataFrame([row]), settings, data_origin(config.dataset), perf_counter() - start)


def _measured(config: TrainConfig, folder: Path, images: int | None) -> pd.DataFrame | None:
    return _read(_file(config, folder), _settings(images) | {"model": config.as_dict()})


def _file(config: TrainConfig, folder: Path) -> Path:
    return folder / config.digest / "measured.csv"


def _settings(images: int | None) -> dict[str, Any]:
    return {"images": images, "methods": list(CERTIFIED_BY), "noise_seed": NOISE_SEED}


def _read(path: Path, config: dict[str, Any]) -> pd.DataFrame | None:
    """The whole rows of exactly this configuration, if they are there."""
    try:
        return read_rows(path, config)
    except (FileNotFoundError, DamagedFileError, ConfigMismatchError):
        return None
