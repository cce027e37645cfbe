"""`llm-internals train`: the tiny language model again."""

import json

import click

from scripts.commands.shared import fail, json_option


@click.command()
@click.option("--variant", default="base", show_default=True, help="which model; --list shows them")
@click.option("--seed", type=int, help="another seed than the variant's own")
@click.option("--steps", type=click.IntRange(min=1), help="fewer or more optimizer steps than the recipe's")
@click.option("--list", "list_them", is_flag=True, help="list the variants")
@click.option("--report", "write_report", is_flag=True, help="print what the trained models can do, as Markdown")
@json_option
def train(
    variant: str, seed: int | None, steps: int | None, list_them: bool, write_report: bool, as_json: bool
) -> None:
    """Train the tiny language model or one of its variants again (about a minute on one core).

    \b
    llm-internals train
    llm-internals train --variant draft --seed 3
    llm-internals train --report
    """
    from internals_math.tiny_lm import report, variants
    from internals_math.tiny_lm.checkpoints import committed_path, file_hash, read_facts
    from scripts.pipeline.progress import StepProgress

    if list_them:
        for name, spec in variants.VARIANTS.items():
            kept = "committed" if spec.committed else "on demand"
            click.echo(f"{name:12} {kept:10} {spec.help}")
        return
    if write_report:
        click.echo(report.to_markdown(report.measure()))
        return
    try:
        variants.variant(variant)
    except ValueError as error:
        fail(str(error))
    with StepProgress(f"train {variant}") as on_step:
        path = variants.train_variant(variant, seed=seed, steps=steps, on_step=on_step)
    facts = read_facts(path)
    excess = facts["loss"] - facts["entropy_floor"]
    same = committed_path(variant).is_file() and file_hash(path) == file_hash(committed_path(variant))
    if as_json:
        click.echo(json.dumps({"path": str(path), "equals_committed": same, **facts}, indent=1))
        return
    click.echo(str(path))
    floor = facts["entropy_floor"]
    click.echo(f"held-out loss {facts['loss']:.4f} nats, entropy floor {floor:.4f}, excess {excess:.4f}", err=True)
    if same:
        click.echo("bit for bit the committed checkpoint", err=True)
