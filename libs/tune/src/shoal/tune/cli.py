"""`shoal tune`: sweeps from YAML files, and what became of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .result_grid import ResultGrid
    from .sweep_file import Sweep
    from .tuner import Tuner

__all__ = ["main"]

SWEEP_COPY = "sweep.yaml"
SWEEP_BASE = "sweep-base.json"
# As shells say it of a program that was interrupted.
INTERRUPTED = 130


@click.group("tune")
def main() -> None:
    """Search hyperparameters: run a sweep from a YAML file, resume it, look at its results."""


def _quiet(verbose: int, quiet: bool) -> int:
    return 0 if quiet else min(3, 1 + verbose)


@main.command("run")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", help="Name of the experiment: its folder below the storage.")
@click.option("--storage", type=click.Path(path_type=Path), help="Folder for the results; before the file's.")
@click.option("--num-samples", type=int, help="How many samples; before the file's.")
@click.option("--address", help="Cluster to run on. Default: the running one of this host, else a private one.")
@click.option("-v", "--verbose", count=True, help="Also say when trials end; twice: each report.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def run_command(file: Path, name: str | None, storage: Path | None, num_samples: int | None, address: str | None, verbose: int, quiet: bool) -> None:
    """Run the sweep of a YAML file."""
    from .sweep_file import load_sweep
    from .tuner import new_name

    sweep = load_sweep(file)
    chosen = name or sweep.run_config.name or new_name(Path(storage or sweep.run_config.storage_path or ""), sweep.trainable)
    folder = Path(storage.absolute() if storage is not None else sweep.run_config.storage_path or "", chosen)
    folder.mkdir(parents=True, exist_ok=True)
    # What `resume` needs, before anything runs. The copy last: it is what `resume` looks for.
    _write_whole(folder / SWEEP_BASE, json.dumps({"base": str(sweep.base), "file": str(file.absolute()), "num_samples": num_samples}))
    _write_whole(folder / SWEEP_COPY, sweep.text)
    _fit(_begin(sweep, folder, num_samples, _quiet(verbose, quiet)), address, folder)


def _write_whole(path: Path, text: str) -> None:
    """All or nothing, should this process be killed."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def _begin(sweep: Sweep, folder: Path, num_samples: int | None, verbose: int) -> Tuner:
    from dataclasses import replace

    from .tuner import Tuner

    run_config = replace(sweep.run_config, name=folder.name, storage_path=str(folder.parent), verbose=verbose)
    tune_config = sweep.tune_config if num_samples is None else replace(sweep.tune_config, num_samples=num_samples)
    return Tuner(sweep.trainable, param_space=sweep.space, tune_config=tune_config, run_config=run_config)


@main.command("resume")
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--errored", type=click.Choice(["skip", "resume", "restart"]), default="skip", show_default=True, help="What becomes of trials that failed.")
@click.option("--address", help="Cluster to run on. Default: the running one of this host, else a private one.")
@click.option("-v", "--verbose", count=True, help="Also say when trials end; twice: each report.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def resume_command(path: Path, errored: str, address: str | None, verbose: int, quiet: bool) -> None:
    """Go on with the experiment in PATH. Trials that have ended do not run again."""
    from .sweep_file import load_sweep
    from .tuner import Tuner

    if not (path / SWEEP_COPY).is_file():
        raise click.ClickException(
            f"{path} was not made by `shoal tune run`: it has no {SWEEP_COPY}. Use Tuner.restore(path, trainable) in the program that made it"
        )
    about = json.loads((path / SWEEP_BASE).read_text())
    sweep = load_sweep(path / SWEEP_COPY, Path(about["base"]))
    if Tuner.can_restore(path):
        tuner = Tuner.restore(path, sweep.trainable, resume_errored=errored == "resume", restart_errored=errored == "restart")
        tuner._run_config.verbose = _quiet(verbose, quiet)
    else:  # it was killed before its first trial
        tuner = _begin(sweep, path.absolute(), about["num_samples"], _quiet(verbose, quiet))
    _fit(tuner, address, path.absolute())


def _fit(tuner: Tuner, address: str | None, folder: Path) -> None:
    import shoal

    with shoal.init(address=address, log_to_driver=False):
        results = tuner.fit()
    unfinished = sum(not trial.is_finished() for trial in results._trials)
    if unfinished:
        click.echo(f"{unfinished} trials have not ended; `shoal tune resume {folder}` goes on with them", err=True)
        raise click.exceptions.Exit(INTERRUPTED)
    if results.num_errors:
        click.echo(f"{results.num_errors} of {len(results)} trials failed; error.txt in their folders says why", err=True)
        raise click.exceptions.Exit(1)


@main.command("results")
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--metric", help="Sort by this one. Default: the experiment's.")
@click.option("--mode", type=click.Choice(["min", "max"]), help="Which values are best. Default: the experiment's.")
@click.option("--limit", type=int, default=50, show_default=True, help="At most so many trials.")
@click.option("--json", "as_json", is_flag=True, help="Everything, for machines.")
def results_command(path: Path, metric: str | None, mode: str | None, limit: int, as_json: bool) -> None:
    """Show the trials of the experiment in PATH, the best first. Also while it runs."""
    from .callback import as_json as encode
    from .reporter import render_table, trial_rows

    results = _load(path, metric, mode)
    if as_json:
        rows = [_row(trial) for trial in results._trials]
        click.echo(json.dumps(rows, indent=1, default=encode))
        return
    header, lines = trial_rows(results._trials, [results._metric] if results._metric else [], results._mode)
    click.echo("\n".join(render_table(header, lines[:limit])))
    if len(lines) > limit:
        click.echo(f"… and {len(lines) - limit} more")


@main.command("best")
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--metric", help="Default: the experiment's.")
@click.option("--mode", type=click.Choice(["min", "max"]), help="Default: the experiment's.")
@click.option("--scope", default="last", show_default=True, help="Which reports count: last, all, avg, last-5-avg, last-10-avg.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def best_command(path: Path, metric: str | None, mode: str | None, scope: str, as_json: bool) -> None:
    """Show the best trial in PATH: configuration, metrics, checkpoint."""
    from .callback import as_json as encode
    from .result_grid import best_trial

    results = _load(path, metric, mode)
    trial = best_trial(results._trials, results._metric, results._mode, scope)
    row = _row(trial)
    if as_json:
        click.echo(json.dumps(row, indent=1, default=encode))
        return
    click.echo(f"{row['trial']} ({row['status'].lower()}), {results._metric} = {row['metrics'].get(results._metric or '')}")
    for title in ("config", "metrics"):
        click.echo(f"\n{title}:")
        for key, value in row[title].items():
            click.echo(f"  {key}: {json.dumps(value, default=encode)}")
    click.echo(f"\nfolder: {row['path']}\ncheckpoint: {row['checkpoint'] or 'none'}")


def _load(path: Path, metric: str | None, mode: str | None) -> ResultGrid:
    from .tuner import load_results

    return load_results(path, metric, mode)


def _row(trial: Any) -> dict[str, Any]:
    from .execution.policy import AUTO_KEYS

    return {
        "trial": str(trial), "status": trial.status, "config": trial.config,
        "metrics": {key: value for key, value in trial.last_result.items() if key not in AUTO_KEYS or key in ("training_iteration", "time_total_s")},
        "path": trial.path, "checkpoint": trial.checkpoints[-1].path if trial.checkpoints else None, "error": trial.error_text or None,
    }  # fmt: skip
