"""benchmarks/results/*.json -> the tables that `update_docs.py` writes into the pages."""

import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def quickstart() -> str:
    """Accuracy before and after, per seed."""
    result = _result("quickstart")
    rows = [
        f"| {run['seed']} | {run['before']:.3f} | {run['after']:.3f} | "
        f"{run['after'] - run['before']:+.3f} | {run['seconds']:.0f} |"
        for run in result["runs"]
    ]
    head = ["| seed | held-out accuracy before | after | gain | seconds |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows, "", _source(result)])


def quickstart_gain() -> str:
    """The quickstart in one sentence."""
    runs = _result("quickstart")["runs"]
    before, after = ([run[key] for run in runs] for key in ("before", "after"))
    minutes = sum(run["seconds"] for run in runs) / len(runs) / 60
    return (
        f"On {len(runs)} seeds the accuracy on held-out problems goes from {min(before):.2f}–"
        f"{max(before):.2f} to {min(after):.2f}–{max(after):.2f}, in about {minutes:.0f} minutes "
        "on one CPU core."
    )


def memory() -> str:
    """Predicted peaks of the card recipe; measured ones where the benchmark has run."""
    lines = ["| card | model | prompt + completion | predicted peak |", "|---|---|---|---|"]
    estimated = _result("memory_estimated")
    for row in estimated["rows"]:
        lines.append(
            f"| {row['card_gb']} GB | {row['shape']} | 512 + {row['max_completion_length']} | "
            f"{row['predicted_gib']:.1f} GiB (estimated) |"
        )
    with_critic = "a critic network beside (`value_model_path: policy`), reference included. "
    lines += ["", "`recipes/card.yaml` with " + with_critic + _source(estimated)]
    if (RESULTS / "memory_cpu.json").is_file():
        lines += ["", *_memory_on_cpu(_result("memory_cpu"))]
    if (RESULTS / "memory_logits.json").is_file():
        lines += ["", _memory_of_logits(_result("memory_logits"))]
    return "\n".join(lines)


def _memory_on_cpu(result: dict) -> list[str]:
    """SmolLM2: peaks, how far the prediction is off, and what the critic costs."""
    rows = {row["name"]: row for row in result["rows"]}
    lines = [
        "| SmolLM2-135M, LoRA r=8, CPU | peak resident | of it, above start | predicted | s/step |",
        "|---|---|---|---|---|",
    ]
    for row in rows.values():
        error = row["predicted_gib"] / row["above_start_gib"] - 1
        lines.append(
            f"| {row['name']} | {row['peak_gib']:.2f} GiB | {row['above_start_gib']:.2f} GiB | "
            f"{row['predicted_gib']:.2f} GiB ({error:+.0%}) | {row['seconds']['median']:.1f} |"
        )
    costs = []
    for bits in ("bf16", "4-bit"):
        with_critic, without = (rows.get(f"{bits}, {c}") for c in ("shared critic", "no critic"))
        if with_critic and without:
            memory = with_critic["peak_gib"] / without["peak_gib"]
            seconds = with_critic["seconds"]["median"] / without["seconds"]["median"]
            costs.append(f"{bits}: {memory:.2f} × the memory, {seconds:.2f} × the time")
    lines += ["", "32 completions of 96 tokens a step behind prompts of 50. The critic costs, in "]
    lines[-1] += "; ".join(costs) + ". " + _source(result)
    return lines


def _memory_of_logits(result: dict) -> str:
    largest = max(
        (row for row in result["rows"] if row["whole_gib"] is not None),
        key=lambda row: (row["tokens"], row["vocab_size"]),
    )
    same = [r for r in result["rows"] if r["vocab_size"] == largest["vocab_size"]]
    least, most = min(r["chunked_gib"] for r in same), max(r["chunked_gib"] for r in same)
    return (
        f"Log-probs with their gradient over a vocabulary of {largest['vocab_size']:,}: from "
        f"{same[0]['tokens']} to {same[-1]['tokens']} tokens the chunks take {least:.2f} to "
        f"{most:.2f} GiB; whole logits of {largest['tokens']} tokens take "
        f"{largest['whole_gib']:.2f}. {_source(result)}"
    )


def smollm2() -> str:
    result = _result("smollm2")
    return (
        f"{result['steps']} steps of SmolLM2-135M (`recipes/smollm2.yaml`, 8 completions of up to "
        "32 tokens a step, LoRA policy and critic on one base) took "
        f"{result['seconds']:.0f} s, start included, and {result['peak_gib']:.1f} GiB of memory at "
        f"the peak. {_source(result)}"
    )


def _accuracy(row: dict) -> str:
    return f"{row['final_accuracy']:.3f}" + _shown(" ± {:.3f}", row["final_standard_error"])


def learning() -> str:
    """Ways to assign credit, per task."""
    result = _result("learning")
    lines = []
    for task, rows in result["tasks"].items():
        lines += [
            f"| {task} | seeds | final accuracy | Δ mean accuracy to GRPO mode (p) | samples to "
            "GRPO mode's end | to ¾ of its gain | CPU seconds | accuracy when TRL's time is up | "
            "EV |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in sorted(rows, key=lambda row: -row["final_accuracy"]):
            lines.append(_learning_row(row))
        lines.append("")
    return "\n".join([*lines, _source(result)])


CHOICES = {
    "spo_value_mean": "`segment_value: mean`",
    "spo_value_last": "`segment_value: last`",
    "spo_token_level": "`advantage_level: token`",
    "spo_lam90": "`lam: 0.9`",
    "spo_lam95": "`lam: 0.95`",
    "spo_lam100": "`lam: 1.0`",
    "spo_normalized": "`normalize_advantages: true`",
    "spo_no_features": "`value_features: none`",
    "spo_8_generations": "`num_generations: 8`",
}
"""Modes of benchmarks/learning.py that change one thing of `spo_p20`."""


def choices() -> str:
    """What changing one thing of SPO does to its accuracy."""
    tasks = _result("learning")["tasks"]
    found = {
        task: {row["mode"]: row["against_spo"] for row in rows if row["mode"] in CHOICES}
        for task, rows in tasks.items()
    }
    columns = [task for task, of_task in found.items() if any(of_task.values())]
    lines = [
        f"| one thing changed | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for mode, words in CHOICES.items():
        tests = [found[task].get(mode) for task in columns]
        cells = [f"{_difference(test)} ({test['seeds']})" if test else "" for test in tests]
        if any(cells):
            lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(form: str, value) -> str:
    return "" if value is None else form.format(value)


def _difference(test: dict) -> str:
    """Mean ± standard error, where there is one."""
    return f"{test['mean']:+.3f}" + _shown(" ± {:.3f}", test["standard_error"])


def _learning_row(row: dict) -> str:
    against = row["against_grpo"]
    compared = _difference(against) + _shown(" ({:.3f})", against["p"])
    cells = (
        row["mode"],
        str(len(row["seeds"])),
        _accuracy(row),
        "–" if row["mode"] == row["baseline"] else compared,
        _shown("{:.2f} ×", row["samples_ratio"]) or "not reached",
        _shown("{:.2f} ×", row["early_samples_ratio"]) or "not reached",
        f"{row['cpu_seconds']:.0f}",
        _shown("{:.3f}", row["at_trl_seconds"]) or "–",
        _shown("{:.2f}", row["explained_variance"]) or "–",
    )
    return f"| {' | '.join(cells)} |"


def gradients() -> str:
    """Signal to noise per mode, and the critic against Monte Carlo values."""
    result = _result("gradients_chain_sum")
    rows = {row["mode"]: row for row in result["rows"]}
    lines = [
        f"| gradient of {result['shape']['batch_size']} completions | signal to noise | "
        "over GRPO's | cosine to the unbiased one | gain of an Adam step over GRPO's |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        ratio, gain = (row[key] / rows["grpo"][key] for key in ("signal_to_noise", "adam_gain"))
        cosine = "–" if row["cosine"] is None else f"{row['cosine']:.2f}"
        lines.append(
            f"| {name} | {row['signal_to_noise']:.3f} | {ratio:.1f} × | {cosine} | {gain:.2f} × |"
        )
    values = result["values"]
    lines += [
        "",
        f"At {values['states']} segment starts, against the mean reward of "
        f"{values['continuations']} sampled continuations: the critic's values correlate "
        f"{values['correlation']:.2f} (rms error {values['rms_error']:.2f}), the group means that "
        f"GRPO subtracts {values['group_mean_correlation']:.2f} "
        f"({values['group_mean_rms_error']:.2f}). {_source(result)}",
    ]
    return "\n".join(lines)


def breakdowns() -> str:
    """First mistakes with and without a KL penalty."""
    result = _result("breakdowns")
    runs = result["runs"]
    heads = [f"β = {run['beta']}: wrong sum | lost its place" for run in runs]
    lines = [f"| update | {' | '.join(heads)} |", "|---|" + "---|---|" * len(runs)]
    for of_all in zip(*(run["mistakes"] for run in runs), strict=True):
        shares = [count["shares"] for count in of_all]
        cells = [f"{s.get(kind, 0.0):.1%}" for s in shares for kind in ("sum", "place")]
        lines.append(f"| {of_all[0]['update']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _source(result)])


def _result(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _source(result: dict) -> str:
    machine = result["machine"]
    return (
        f"<sub>`{result['command']}`, commit {result['commit']}, torch "
        f"{result['versions']['torch']}, {machine['cores']} cores</sub>"
    )


BLOCKS = (
    quickstart_gain,
    quickstart,
    memory,
    smollm2,
    gradients,
    learning,
    choices,
    breakdowns,
)
